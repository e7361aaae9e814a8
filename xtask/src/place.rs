//! Where things are: the workspace and its target directory.

use std::path::PathBuf;
use std::{env, path::Path};

use anyhow::{Context as _, Result};

/// Both paths are absolute.
pub struct Place {
    pub workspace: PathBuf,
    pub target: PathBuf,
}

impl Place {
    /// The workspace is the folder above this crate's; the target directory is where this program was built
    /// (`target/debug/xtask`), however cargo was told of it.
    pub fn find() -> Result<Self> {
        let crate_folder = env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .context("CARGO_MANIFEST_DIR is not set; run this as `cargo xtask`")?;
        let workspace = crate_folder.parent().context("xtask lies in no workspace")?.to_path_buf();
        let exe = env::current_exe().context("find this program")?;
        let target =
            exe.ancestors().nth(2).map(Path::to_path_buf).context("this program is below no target directory")?;
        Ok(Self { workspace, target })
    }
}
