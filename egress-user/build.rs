fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/bpfel-unknown-none/release/egress-ebpf");
    std::fs::copy(object, format!("{out}/egress.bpf.o")).unwrap();
    println!("cargo:rerun-if-changed={object}");
}
