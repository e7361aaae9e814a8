use serde_json::json;

use super::*;

const COMM: &str = "<script>alert(1)</script>\u{1b}[2J\u{202e}\"'&";

fn refusal(kind: &str, second: u32, destination: &str, comm: &str) -> Event {
    serde_json::from_value(json!({"version": 1, "time": format!("2026-03-01T12:03:{second:02}.000000Z"), "kind": kind,
        "verdict": if kind == "dropped" { "drop" } else { "pass" }, "reason": "no-rule", "hook": "connect",
        "protocol": "tcp", "destination": destination, "destination_port": 443, "bytes": 0, "generation": 1, "count": 3,
        "process": {"pid": 1, "comm": comm, "uid": 0}}))
    .unwrap()
}

fn page(events: &[Event]) -> String {
    let mut run = Run::new();
    events.iter().for_each(|event| run.add(event));
    run.html("A <run> & more")
}

/// The elements in order, by a reader that knows nothing but tags: each that opens must close.
fn elements(page: &str) -> Vec<String> {
    let mut open: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for part in page.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("a tag without an end: {part}"));
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap().to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_ref(), Some(&name), "closes what is not open");
        } else {
            if !tag.ends_with('/') && !matches!(name.as_str(), "!doctype" | "meta") {
                open.push(name.clone());
            }
            all.push(name);
        }
    }
    assert_eq!(open, [""; 0]);
    all
}

#[test]
fn a_page_is_whole_and_needs_nothing_else() {
    let page = page(&[refusal("dropped", 1, "203.0.113.1", "curl"), refusal("would-drop", 9, "2001:db8::1", "git")]);
    let all = elements(&page);
    let count = |name: &str| all.iter().filter(|element| *element == name).count();
    assert_eq!((count("h1"), count("main"), count("table"), count("svg"), count("figure")), (1, 1, 1, 4, 2));
    assert_eq!(count("script") + count("link") + count("img") + count("iframe") + count("a"), 0);
    for outside in ["http:", "https:", "url(", "@import", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'") && page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("A &lt;run&gt; &amp; more") && page.contains("[2001:db8::1]:443/tcp"));
    let pictures = page.matches("role=\"img\"").count();
    assert_eq!(pictures, count("svg"), "each picture says what it shows");
}

#[test]
fn what_a_process_calls_itself_is_only_text() {
    let page = page(&[refusal("dropped", 1, "203.0.113.1", COMM)]);
    elements(&page);
    assert!(!page.contains("<script") && !page.contains(['\u{1b}', '\u{202e}']));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;\\u{1b}[2J\\u{202e}&quot;&#39;&amp;"), "{page}");
}

#[test]
fn counts_are_those_of_the_events() {
    let page = page(&[
        refusal("dropped", 1, "203.0.113.1", "curl"),
        refusal("dropped", 2, "203.0.113.1", "wget"),
        refusal("would-drop", 2, "203.0.113.2", "wget"),
    ]);
    for (what, number) in
        [("destinations", 2), ("of them blocked", 1), ("packets and calls blocked", 6), ("passed without a rule", 3)]
    {
        assert!(page.contains(&format!("<dt>{what}</dt><dd>{number}</dd>")), "{what} {number}");
    }
    assert!(page.contains("2026-03-01 12:03:01 to 2026-03-01 12:03:02 UTC"));
}

#[test]
fn an_empty_run_is_a_page_too() {
    let page = page(&[]);
    elements(&page);
    assert!(page.contains("Nothing was blocked"));
}

#[test]
fn a_flood_of_destinations_is_bounded() {
    let events: Vec<Event> =
        (0..6_000_u32).map(|n| refusal("dropped", n % 60, &format!("203.{}.{}.1", n / 250, n % 250), "scan")).collect();
    let page = page(&events);
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    assert!(page.contains("3000 packets and calls to further destinations are not shown"));
    elements(&page);
}
