//! The page round the pictures.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Pair, Run, picture};

/// Destinations that get a picture over time; rows of a table.
const PICTURES: usize = 12;
const ROWS: usize = 200;

const STYLE: &str = include_str!("style.css");

/// Text as HTML, in elements and in attributes. What cannot be seen (control characters, bidirectional overrides) is shown
/// as `\u{1b}`: events come escaped, but a file of events may not.
pub(super) fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for character in raw.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\\' => out.push('\\'),
            _ if character.is_control()
                || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}') =>
            {
                let _ = write!(out, "{}", character.escape_unicode());
            }
            _ => out.push(character),
        }
    }
    out
}

/// All pairs of one destination.
#[derive(Default)]
struct Row<'a> {
    blocked: u64,
    passed: u64,
    sources: Vec<&'a str>,
    reasons: Vec<&'a str>,
    seconds: BTreeMap<u64, u64>,
}

impl<'a> Row<'a> {
    fn add(&mut self, source: &'a str, pair: &'a Pair) {
        self.blocked += pair.blocked;
        self.passed += pair.passed;
        self.sources.push(source);
        for reason in &pair.reasons {
            if !self.reasons.contains(&reason.as_str()) {
                self.reasons.push(reason);
            }
        }
        for (second, count) in &pair.seconds {
            *self.seconds.entry(*second).or_default() += count;
        }
    }
}

pub(super) fn html(run: &Run, title: &str) -> String {
    let mut rows: BTreeMap<&str, Row<'_>> = BTreeMap::new();
    for ((source, destination), pair) in &run.pairs {
        rows.entry(destination).or_default().add(source, pair);
    }
    let mut rows: Vec<(&str, Row<'_>)> = rows.into_iter().collect();
    rows.sort_by(|(a, x), (b, y)| {
        (y.blocked > 0, y.blocked + y.passed).cmp(&(x.blocked > 0, x.blocked + x.passed)).then(a.cmp(b))
    });
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n",
        text(title)
    );
    heading(run, &rows, &mut page);
    if rows.is_empty() {
        page.push_str(
            "<p class=\"none\">Nothing was blocked, and nothing was seen that a policy does not allow.</p>\n",
        );
    } else {
        page.push_str("<section>\n<h2>Who talked to whom</h2>\n<p class=\"legend\"><span class=\"key\"><span class=\"p\"></span> passed without a rule (audit)</span> <span class=\"key\"><span class=\"b\"></span> \u{2715} blocked</span> Wider is more often, on a logarithmic scale.</p>\n");
        page.push_str(&picture::flows(run, 960.0, "wide"));
        page.push_str(&picture::flows(run, 380.0, "narrow"));
        page.push_str("\n</section>\n");
        over_time(run, &rows, &mut page);
        destinations(&rows, &mut page);
    }
    names(run, &mut page);
    policies(run, &mut page);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn heading(run: &Run, rows: &[(&str, Row<'_>)], page: &mut String) {
    let blocked: u64 = rows.iter().map(|(_, row)| row.blocked).sum();
    let passed: u64 = rows.iter().map(|(_, row)| row.passed).sum();
    let blocked_rows = rows.iter().filter(|(_, row)| row.blocked > 0).count();
    if let Some((first, last)) = run.span {
        let _ = writeln!(page, "<p class=\"when\">{} to {} UTC</p>", clock(first), clock(last));
    }
    page.push_str("<dl class=\"facts\">\n");
    for (what, number, bad) in [
        ("destinations", rows.len() as u64, false),
        ("of them blocked", blocked_rows as u64, blocked_rows > 0),
        ("packets and calls blocked", blocked, blocked > 0),
        ("passed without a rule", passed, false),
        ("names answered", run.names.len() as u64, false),
    ] {
        let class = if bad { " class=\"bad\"" } else { "" };
        let _ = writeln!(page, "<div{class}><dt>{what}</dt><dd>{number}</dd></div>");
    }
    page.push_str("</dl>\n");
    for (count, what) in [
        (run.more, "packets and calls to further destinations are not shown"),
        (run.lost, "events were lost: there may be more than this"),
        (run.unreadable, "lines could not be read as events"),
    ] {
        if count > 0 {
            let _ = writeln!(page, "<p class=\"warn\">{count} {what}.</p>");
        }
    }
}

fn over_time(run: &Run, rows: &[(&str, Row<'_>)], page: &mut String) {
    let Some(span) = run.span else { return };
    let _ = writeln!(
        page,
        "<section>\n<h2>Over time</h2>\n<p class=\"legend\">Each from {} to {}; heights within one picture only.</p>\n<div class=\"many\">",
        clock(span.0),
        clock(span.1)
    );
    for (name, row) in rows.iter().take(PICTURES) {
        let count = row.blocked + row.passed;
        let word = if row.blocked > 0 { "blocked" } else { "seen" };
        let label = format!("{name}: {word} {count} times, over time");
        let _ = writeln!(
            page,
            "<figure><figcaption>{}<b>{word} {count}</b></figcaption>{}</figure>",
            text(name),
            picture::bars(&row.seconds, span, row.blocked > 0, &label)
        );
    }
    page.push_str("</div>\n</section>\n");
}

fn destinations(rows: &[(&str, Row<'_>)], page: &mut String) {
    page.push_str("<section>\n<h2>Destinations</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Destinations\"><table>\n<thead><tr><th scope=\"col\">destination</th><th scope=\"col\">verdict</th><th scope=\"col\" class=\"n\">count</th><th scope=\"col\">who</th><th scope=\"col\">why</th></tr></thead>\n<tbody>\n");
    for (name, row) in rows.iter().take(ROWS) {
        let (class, word) = match (row.blocked, row.passed) {
            (0, _) => ("p", "passed"),
            (_, 0) => ("b", "blocked"),
            _ => ("b", "both"),
        };
        let who: Vec<String> = row.sources.iter().take(4).map(|source| text(source)).collect();
        let more = if row.sources.len() > 4 { format!(" and {} more", row.sources.len() - 4) } else { String::new() };
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td><span class=\"tag {class}\">{word}</span></td><td class=\"n\">{}</td><td>{}{more}</td><td>{}</td></tr>",
            text(name),
            row.blocked + row.passed,
            who.join(", "),
            text(&row.reasons.join(", "))
        );
    }
    page.push_str("</tbody></table></div>\n");
    if rows.len() > ROWS {
        let _ = writeln!(page, "<p class=\"warn\">{} more destinations are not shown.</p>", rows.len() - ROWS);
    }
    page.push_str("</section>\n");
}

fn names(run: &Run, page: &mut String) {
    if run.names.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Names that were answered</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Names\"><table>\n<thead><tr><th scope=\"col\">name</th><th scope=\"col\" class=\"n\">answers</th><th scope=\"col\">addresses</th></tr></thead>\n<tbody>\n");
    for (name, (addresses, answers)) in run.names.iter().take(ROWS) {
        let shown: Vec<String> = addresses.iter().take(6).map(|address| text(address)).collect();
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td class=\"n\">{answers}</td><td>{}</td></tr>",
            text(name),
            shown.join(", ")
        );
    }
    page.push_str("</tbody></table></div>\n</section>\n");
}

fn policies(run: &Run, page: &mut String) {
    if run.policies.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Changes of the policy</h2>\n<ul>\n");
    for (time, message) in run.policies.iter().take(ROWS) {
        let _ = writeln!(page, "<li>{}: {}</li>", clock(*time), text(message));
    }
    page.push_str("</ul>\n</section>\n");
}

/// `2026-03-01 12:03:44`, UTC.
fn clock(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', "")
}
