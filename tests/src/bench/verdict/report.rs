//! The figures as tables.

use comfy_table::{Table, presets::NOTHING};

use super::Figures;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header.iter().copied());
    table
}

pub fn print(figures: &Figures) {
    let mut verdicts = table(&["addresses", "what", "program", "ns", "empty", "+ns", "ratio", "spread"]);
    for figure in &figures.verdicts {
        let (own, empty) = (figure.nanoseconds, figure.empty);
        verdicts.add_row([
            figure.addresses.to_string(),
            figure.what.clone(),
            figure.program.clone(),
            format!("{own:.0}"),
            format!("{empty:.0}"),
            format!("{:.0}", own - empty),
            format!("{:.1}", own / empty),
            format!("{:.0}", figure.spread),
        ]);
    }
    println!("{verdicts}");
    let mut parts = table(&["addresses", "rules", "over an empty program", "hot, +ns", "run once", "cold"]);
    for part in figures.parts.iter().chain(&figures.by_rules) {
        let [hot, once] = [part.hot, part.once].map(|value| format!("{value:.0}"));
        let cold = part.cold.map_or_else(String::new, |cold| format!("{cold:.0}"));
        let (addresses, rules) = (part.addresses.to_string(), part.rules.to_string());
        parts.add_row([addresses, rules, part.what.to_owned(), hot, once, cold]);
    }
    println!("{parts}");
    let mut memory = table(&["addresses", "names", "prefixes", "MiB", "largest"]);
    for row in &figures.memory {
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        let largest: Vec<_> = row.maps.iter().take(5).map(|(name, bytes)| format!("{name} {}", mib(*bytes))).collect();
        let (names, prefixes) = (row.names.to_string(), row.prefixes.to_string());
        memory.add_row([row.addresses.to_string(), names, prefixes, mib(row.total), largest.join(", ")]);
    }
    println!("{memory}");
    let mut programs = table(&["program", "verified", "instructions", "stack", "load, ms"]);
    for row in &figures.programs {
        programs.add_row([
            row.program.to_owned(),
            row.shape.verified.to_string(),
            row.shape.instructions.to_string(),
            row.shape.stack.to_string(),
            format!("{:.1}", row.load),
        ]);
    }
    println!("{programs}");
}
