//! What `egress report` writes, in a real browser: at a phone's width and at a desk's, in light and dark.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use egress_tests::daemon;

/// More sources and destinations than the picture names, with names as long as they get.
fn events() -> String {
    let mut lines = String::new();
    for n in 0..60_u32 {
        let (kind, verdict) = if n % 3 == 0 { ("dropped", "drop") } else { ("would-drop", "pass") };
        let destination =
            if n % 4 == 0 { format!("2001:db8:ffff:ffff:ffff:ffff:ffff:{n:x}") } else { format!("203.0.113.{n}") };
        let names = if n % 2 == 0 {
            format!("[\"wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww-{n}.mmmmmmmmmmmmmmmm.example.com\"]")
        } else {
            "[]".into()
        };
        let comm = if n % 5 == 0 { format!("WWWWWWWWWWWW{n}") } else { format!("curl{}", n % 13) };
        let _ = writeln!(
            lines,
            "{{\"version\":1,\"time\":\"2026-03-01T12:{:02}:{:02}.000000Z\",\"kind\":\"{kind}\",\"verdict\":\"{verdict}\",\"reason\":\"no-rule\",\
             \"hook\":\"connect\",\"protocol\":\"tcp\",\"destination\":\"{destination}\",\"destination_port\":443,\"names\":{names},\"bytes\":0,\
             \"generation\":1,\"count\":{},\"process\":{{\"pid\":{n},\"comm\":\"{comm}\",\"uid\":0}}}}",
            n / 12,
            n,
            1 + n * n
        );
    }
    lines
}

/// Measures in the page: what is cut off, and whether it must be scrolled sideways.
const MEASURE: &str = "<script>
const wrong = [];
let pictures = 0;
for (const svg of document.querySelectorAll('svg')) {
  const frame = svg.getBoundingClientRect();
  if (frame.width === 0) continue;
  pictures += 1;
  for (const text of svg.querySelectorAll('text')) {
    const box = text.getBoundingClientRect();
    if (box.left < frame.left - 0.5 || box.right > frame.right + 0.5) wrong.push(text.textContent + ': cut at ' + box.left + '..' + box.right + ' of ' + frame.left + '..' + frame.right);
    if (box.height < 9) wrong.push(text.textContent + ': ' + box.height + ' px high');
  }
}
for (const key of document.querySelectorAll('.key'))
  if (key.getClientRects().length !== 1) wrong.push('a key of the legend is broken over lines: ' + key.textContent);
const page = document.documentElement;
if (page.scrollWidth > innerWidth) wrong.push('scrolls sideways: ' + page.scrollWidth + ' of ' + innerWidth);
document.documentElement.innerHTML = '<body>' + JSON.stringify({ pictures, width: innerWidth, wrong, ground: getComputedStyle(document.body).backgroundColor }).replaceAll('<', '(') + '</body>';
</script>";

/// A browser without a network.
fn browser(page: &Path, home: &Path, width: u32, dark: bool, what: &[&str]) -> String {
    let mut command = Command::new("unshare");
    command.args(["--net", "chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
    command.arg(format!("--user-data-dir={}", home.display())).arg(format!("--window-size={width},900"));
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    let output = command.args(what).arg(format!("file://{}", page.display())).env("HOME", home).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_page_can_be_read_on_a_phone_and_in_the_dark() {
    let directory = tempfile::tempdir().unwrap();
    let (lines, page) = (directory.path().join("events.jsonl"), directory.path().join("page.html"));
    fs::write(&lines, events()).unwrap();
    let written = Command::new(daemon::binary().unwrap())
        .args([
            "report",
            "--title",
            "A node's outbound traffic, with a title that is longer than a phone is wide",
            "--events",
        ])
        .args([&lines, Path::new("--output"), &page])
        .output()
        .unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let text = fs::read_to_string(&page).unwrap();
    // The page's own rule forbids every script, the measuring one too: it goes from the copy that is measured.
    let policy =
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">";
    assert!(text.contains(policy) && text.contains("</main>\n</body>"));
    let measured = directory.path().join("measured.html");
    fs::write(&measured, text.replace(policy, "").replace("</body>", &format!("{MEASURE}</body>"))).unwrap();
    let mut grounds = Vec::new();
    for (width, dark) in [(360, false), (390, true), (768, false), (1280, true)] {
        let home = directory.path().join(format!("{width}"));
        let dom = browser(&measured, &home, width, dark, &["--dump-dom"]);
        let json = dom.split_once("<body>").and_then(|(_, rest)| rest.split_once("</body>")).expect(&dom).0;
        let found: serde_json::Value =
            serde_json::from_str(&json.replace("&gt;", ">").replace("&amp;", "&")).expect(json);
        assert_eq!(found["width"], width, "{found}");
        assert!(found["pictures"].as_u64() > Some(1), "{found}");
        assert_eq!(found["wrong"], serde_json::json!([]), "{width} px");
        grounds.push(found["ground"].clone());
        // For whoever wants to look.
        let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
        fs::create_dir_all(&pictures).unwrap();
        let shot = pictures.join(format!("report-{width}{}.png", if dark { "-dark" } else { "" }));
        browser(&page, &home, width, dark, &[&format!("--screenshot={}", shot.display())]);
        assert!(fs::metadata(&shot).unwrap().len() > 10_000, "{}", shot.display());
    }
    assert_eq!((&grounds[0], &grounds[1]), (&grounds[2], &grounds[3]));
    assert_ne!(grounds[0], grounds[1], "the dark page is dark");
}
