//! A share of `cargo xtask chaos`.

use egress_tests::chaos::{Options, details, run, table};

/// P2, P4, P6: while the daemon is killed, its policy swapped, its resolver and uplink taken away, nothing forbidden arrives
/// in the world, no allowed connection breaks, and new names work wherever they can.
#[test]
fn nothing_gets_out_and_nothing_breaks() {
    let rows = run(&Options::share()).unwrap();
    println!("{}", table(&rows));
    let failed: Vec<_> = rows.iter().filter(|row| !row.holds()).map(details).collect();
    assert!(failed.is_empty(), "{}\n{}", table(&rows), failed.join("\n"));
}
