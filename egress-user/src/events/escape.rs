//! Text that a workload chose, made safe for terminals and logs.

/// Invalid UTF-8 as `\xff`, control and invisible characters (newlines, escape sequences, bidirectional overrides) as
/// `\u{1b}`, a backslash as `\\`: nothing that a process names itself can move a cursor or forge a line.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' | '"' => text.push(character),
                _ => text.extend(character.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}
