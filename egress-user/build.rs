//! Builds the eBPF object and lays it in `OUT_DIR`, from where the library embeds it.

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On standard error, which cargo shows under the failed build script.
            eprintln!("error: the eBPF object was not built: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("egress-user lies in no workspace")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target = target_directory(&out).ok_or_else(|| format!("{} is below no target directory", out.display()))?;
    for file in ["egress-ebpf/src", "egress-ebpf/Cargo.toml", "Cargo.toml", "Cargo.lock", "xtask/src/ebpf.rs"] {
        println!("cargo:rerun-if-changed={}", workspace.join(file).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(linker) = ebpf::linker(&target) {
        println!("cargo:rerun-if-changed={}", linker.display());
    }

    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let status = ebpf::cargo("build", workspace, &target, &arch)?.status()?;
    if !status.success() {
        return Err(format!("cargo ended with {status}; what it said stands above").into());
    }
    let object = fs::read(ebpf::object(&target))?;
    fs::write(out.join("egress.bpf.o"), without_dwarf(&object)?)?;
    Ok(())
}

/// The workspace's target directory. `OUT_DIR` is `target[/TRIPLE]/PROFILE/build/PACKAGE-HASH/out`.
fn target_directory(out: &Path) -> Option<PathBuf> {
    let above_profile = out.ancestors().nth(4)?;
    let triple = env::var_os("TARGET");
    if above_profile.file_name() == triple.as_deref() {
        return above_profile.parent().map(Path::to_path_buf);
    }
    Some(above_profile.to_path_buf())
}

/// The object without its debug information, which is most of it and which the loader would read at every start. BTF,
/// with the line numbers for the verifier's log, stays.
fn without_dwarf(object: &[u8]) -> Result<Vec<u8>, object::build::Error> {
    let mut builder = object::build::elf::Builder::read(object)?;
    for section in &mut builder.sections {
        section.delete = [&b".debug_"[..], b".rel.debug_"].iter().any(|prefix| section.name.starts_with(prefix));
    }
    builder.delete_orphans();
    // The linker keeps the names of sections and of symbols in one table; the writer wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}
