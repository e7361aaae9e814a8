use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use crate::resolve::system::{Paths, Watcher, read, watch};

fn paths(folder: &Path) -> Paths {
    Paths { resolv_conf: folder.join("etc/resolv.conf"), resolved: folder.join("run/resolve/resolv.conf") }
}

fn folder(resolv_conf: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("etc")).unwrap();
    fs::write(folder.path().join("etc/resolv.conf"), resolv_conf).unwrap();
    folder
}

fn addresses(addresses: &[&str]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn nameservers_search_and_options_with_junk_between() {
    let folder = folder(
        "# a comment\nnameserver 203.0.113.53\nnameserver 2001:db8::53\nnameserver fe80::1%lo\nnameserver not-an-address\n\
         nameserver 203.0.113.53\nsearch Example.COM. svc.cluster.local\noptions ndots:5 edns0\nwhatever\n",
    );
    let system = read(&paths(folder.path())).unwrap();
    assert_eq!(system.asked, addresses(&["203.0.113.53:53", "[2001:db8::53]:53", "[fe80::1%1]:53"]));
    assert_eq!(system.search, ["example.com", "svc.cluster.local"]);
    assert_eq!(system.ndots, 5);
    assert!(system.upstreams.is_empty());
}

#[test]
fn no_nameserver_means_the_local_one_and_no_file_is_an_error() {
    let folder = folder("domain example.com\n");
    let system = read(&paths(folder.path())).unwrap();
    assert_eq!((system.asked, system.search), (addresses(&["127.0.0.1:53"]), vec!["example.com".to_owned()]));
    let error = read(&paths(Path::new("/nonexistent"))).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/etc/resolv.conf") && error.contains("--resolver"), "{error}");
}

#[test]
fn behind_the_stub_stand_its_upstreams() {
    let folder = folder("nameserver 127.0.0.53\n");
    assert!(read(&paths(folder.path())).unwrap().upstreams.is_empty(), "no upstream file yet");
    fs::create_dir_all(folder.path().join("run/resolve")).unwrap();
    fs::write(folder.path().join("run/resolve/resolv.conf"), "nameserver 203.0.113.1\nnameserver 127.0.0.53\n")
        .unwrap();
    let system = read(&paths(folder.path())).unwrap();
    assert_eq!(system.asked, addresses(&["127.0.0.53:53"]));
    assert_eq!(system.upstreams, addresses(&["203.0.113.1:53"]));
}

async fn changed(watcher: &mut Watcher) -> Vec<SocketAddr> {
    timeout(Duration::from_secs(5), watcher.resolvers.changed()).await.expect("the change was not seen").unwrap();
    watcher.resolvers.borrow_and_update().asked.clone()
}

#[tokio::test]
async fn a_file_written_in_place_renamed_over_removed_and_made_again() {
    let folder = folder("nameserver 203.0.113.1\n");
    let file = folder.path().join("etc/resolv.conf");
    let mut watcher = watch(paths(folder.path())).unwrap();
    assert_eq!(watcher.resolvers.borrow_and_update().asked, addresses(&["203.0.113.1:53"]));
    fs::write(&file, "nameserver 203.0.113.2\n").unwrap();
    assert_eq!(changed(&mut watcher).await, addresses(&["203.0.113.2:53"]));
    let new = folder.path().join("elsewhere"); // moved in: its own folder is not watched
    for last in 3..6 {
        fs::write(&new, format!("nameserver 203.0.113.{last}\n")).unwrap();
        fs::rename(&new, &file).unwrap();
        assert_eq!(changed(&mut watcher).await, addresses(&[&format!("203.0.113.{last}:53")]));
    }
    fs::remove_file(&file).unwrap();
    assert!(timeout(Duration::from_millis(600), watcher.resolvers.changed()).await.is_err(), "the last stands");
    fs::write(&file, "nameserver 203.0.113.9\n").unwrap();
    assert_eq!(changed(&mut watcher).await, addresses(&["203.0.113.9:53"]));
}

#[tokio::test]
async fn a_symlink_swapped_and_its_target_written() {
    let folder = folder("");
    let file = folder.path().join("etc/resolv.conf");
    fs::create_dir(folder.path().join("a")).unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::write(folder.path().join("a/resolv.conf"), "nameserver 203.0.113.1\n").unwrap();
    fs::write(folder.path().join("b/resolv.conf"), "nameserver 203.0.113.2\n").unwrap();
    fs::remove_file(&file).unwrap();
    symlink("../a/resolv.conf", &file).unwrap();
    let mut watcher = watch(paths(folder.path())).unwrap();
    let new = folder.path().join("etc/new");
    symlink("../b/resolv.conf", &new).unwrap();
    fs::rename(&new, &file).unwrap();
    assert_eq!(changed(&mut watcher).await, addresses(&["203.0.113.2:53"]));
    let target = folder.path().join("b/resolv.conf.new");
    fs::write(&target, "nameserver 203.0.113.3\n").unwrap();
    fs::rename(&target, folder.path().join("b/resolv.conf")).unwrap();
    assert_eq!(changed(&mut watcher).await, addresses(&["203.0.113.3:53"]), "renamed in the link's target folder");
    fs::write(folder.path().join("b/resolv.conf"), "nameserver 203.0.113.4\n").unwrap();
    assert_eq!(changed(&mut watcher).await, addresses(&["203.0.113.4:53"]));
}

#[tokio::test]
async fn the_upstream_file_that_comes_later_is_seen() {
    let folder = folder("nameserver 127.0.0.53\n");
    let mut watcher = watch(paths(folder.path())).unwrap();
    fs::create_dir(folder.path().join("run")).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::create_dir(folder.path().join("run/resolve")).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::write(folder.path().join("run/resolve/resolv.conf"), "nameserver 203.0.113.1\n").unwrap();
    changed(&mut watcher).await;
    assert_eq!(watcher.resolvers.borrow().upstreams, addresses(&["203.0.113.1:53"]));
}
