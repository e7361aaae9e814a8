//! Every whole policy in the documents passes `egress check --strict`.

use std::{fs, path::Path};

use assert_cmd::Command;

/// The fenced `yaml` blocks of a document.
fn blocks(text: &str) -> Vec<String> {
    text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn policies_in_the_documents_are_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut documents: Vec<_> = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    documents.push(root.join("README.md"));
    let mut checked = 0;
    for document in documents.iter().filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
        for block in blocks(&fs::read_to_string(document).unwrap()) {
            if !block.starts_with("version: 1") {
                continue;
            }
            let path = dir.path().join("policy.yaml");
            fs::write(&path, &block).unwrap();
            let out = Command::cargo_bin("egress").unwrap().args(["check", "--strict"]).arg(&path).output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{}:\n{block}\n{said}", document.display());
            checked += 1;
        }
    }
    assert!(checked >= 7, "{checked} policies were found");
}
