//! Pictures: SVG, written here since it is a few rectangles and lines; `rsvg-convert` (Debian package `librsvg2-bin`) makes the PNG of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Told apart by people who see few colours (Okabe and Ito, 2008).
pub const COLOURS: [&str; 8] = ["#999999", "#56b4e9", "#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#222222"];

/// A picture `width` by `height`, with a title, what the title leaves open, and what is drawn: SVG elements.
#[must_use]
pub fn frame(width: f64, height: f64, title: &str, says: &str, body: &str) -> String {
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height:.0}' width='{width}' height='{height:.0}' \
         font-family='DejaVu Sans, sans-serif' font-size='11'>\n<rect width='100%' height='100%' fill='#fff'/>\n\
         <text x='10' y='24' font-size='16' font-weight='bold'>{title}</text>\n\
         <text x='10' y='44' fill='#666'>{says}</text>\n{body}</svg>\n"
    )
}

/// Writes `NAME.svg` and `NAME.png` into `out`.
pub fn write(out: &Path, name: &str, picture: &str) -> Result<()> {
    let (svg, png) = (out.join(format!("{name}.svg")), out.join(format!("{name}.png")));
    std::fs::write(&svg, picture).with_context(|| format!("write {}", svg.display()))?;
    let mut convert = Command::new("rsvg-convert");
    convert.args(["--zoom", "2", "--output"]).arg(&png).arg(&svg);
    let status = convert.status().context("start rsvg-convert: is the Debian package librsvg2-bin installed?")?;
    ensure!(status.success(), "rsvg-convert could not read {}", svg.display());
    Ok(())
}
