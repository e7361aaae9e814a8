//! What the build and the tests are made with.

use super::{Item, State, item};
use crate::ebpf;
use crate::place::Place;
use crate::setup::{PACKAGES, has_nextest, installed};

pub fn items(place: &Place) -> Vec<Item> {
    let mut items = Vec::new();
    let setup = "run `cargo xtask setup`";
    match ebpf::Compiler::detect() {
        Ok(compiler) => {
            let source = compiler.has_rust_src() || ebpf::has_shadow(&place.target, &compiler);
            items.push(item("rustc", true, State::Missing, compiler.release.clone(), ""));
            let how = if compiler.has_rust_src() { "in the toolchain" } else { "below target/" };
            items.push(item("rust-src", source, State::Missing, if source { how } else { "not found" }, setup));
        }
        Err(error) => {
            items.push(item("rustc", false, State::Missing, error.to_string(), "install Rust 1.95 by rustup"))
        }
    }
    items.push(match ebpf::linker(&place.target) {
        Ok(path) => item("bpf-linker", true, State::Missing, path.display().to_string(), ""),
        Err(error) => item("bpf-linker", false, State::Missing, error.to_string(), ""),
    });
    items.push(item("cargo-nextest", has_nextest(place), State::Weaker, "the test runner", setup));
    let missing: Vec<_> =
        PACKAGES.iter().map(|&(package, _)| package).filter(|package| installed(package) != Some(true)).collect();
    let found =
        if missing.is_empty() { format!("all {}", PACKAGES.len()) } else { format!("lacks {}", missing.join(" ")) };
    items.push(item("packages", missing.is_empty(), State::Weaker, found, setup));
    items
}
