//! The functions of the kernel that LSM programs are called by, by their numbers among the kernel's types.
//!
//! The kernel's types (BTF) are megabytes, of which two numbers are needed: they are walked over once, and nothing is made of
//! them. The format is that of Documentation/bpf/btf.rst.

use std::{fs, io};

/// `BTF_KIND_FUNC`.
const FUNCTION: u32 = 12;

/// The number of each of these functions; an error where one is not there, or the kernel does not tell its types.
pub fn functions<const N: usize>(names: [String; N]) -> io::Result<[u32; N]> {
    numbers(&fs::read("/sys/kernel/btf/vmlinux")?, names)
}

fn numbers<const N: usize>(types: &[u8], names: [String; N]) -> io::Result<[u32; N]> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "they are not of a known format");
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes).ok_or_else(broken)
    };
    // struct btf_header: magic, version, flags; its length; where types and strings begin behind it, and how long they are.
    if types.get(..2) != Some(&0xeb9f_u16.to_ne_bytes()) {
        return Err(broken());
    }
    let header = word(types, 4)? as usize;
    let section = |at: usize| {
        let (begin, len) = (header + word(types, at)? as usize, word(types, at + 4)? as usize);
        types.get(begin..begin + len).ok_or_else(broken)
    };
    let (mut rest, strings) = (section(8)?, section(16)?);
    let mut found = [0; N];
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        let (name, info) = (word(rest, 0)?, word(rest, 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == FUNCTION {
            let said = strings.get(name as usize..).unwrap_or_default();
            for (name, found) in names.iter().zip(&mut found) {
                if said.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
                    *found = number;
                }
            }
        }
        rest = rest.get(12 + behind(kind, members).ok_or_else(broken)?..).ok_or_else(broken)?;
    }
    match names.iter().zip(found).find(|(_, number)| *number == 0) {
        Some((name, _)) => Err(io::Error::new(io::ErrorKind::NotFound, format!("they have no function {name}"))),
        None => Ok(found),
    }
}

/// How many bytes follow a `struct btf_type` of this kind; `None` of one that is not known, behind which nothing can be read.
fn behind(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => members * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => members * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By aya's reader, which makes them all.
    #[test]
    fn the_numbers_are_those_of_another_reader() {
        let names = ["bpf_lsm_socket_create", "bpf_lsm_socket_setsockopt", "tcp_v4_connect"];
        let found = functions(names.map(ToOwned::to_owned)).expect("this kernel tells its types");
        let kernel = aya::Btf::from_sys_fs().unwrap();
        let other = names.map(|name| kernel.id_by_type_name_kind(name, aya_obj::btf::BtfKind::Func).unwrap());
        assert_eq!(found, other);
    }

    #[test]
    fn what_is_cut_short_or_lacks_a_function_is_an_error() {
        let whole = fs::read("/sys/kernel/btf/vmlinux").expect("this kernel tells its types");
        let error = |types: &[u8], name| numbers(types, [str::to_owned(name)]).unwrap_err().to_string();
        assert_eq!(error(&whole, "no_such_function"), "they have no function no_such_function");
        assert_eq!(error(&whole[..whole.len() / 2], "tcp_v4_connect"), "they are not of a known format");
        assert_eq!(error(b"", "tcp_v4_connect"), "they are not of a known format");
    }
}
