use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use crate::resolve::system::{Paths, SystemResolvers, Watcher, read, watch};

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

fn watching(folder: &Path) -> Watcher {
    let paths = paths(folder);
    let known = read(&paths).ok();
    watch(paths, known, |note| assert_eq!(note, None))
}

async fn changed(watcher: &mut Watcher) -> Vec<SocketAddr> {
    timeout(Duration::from_secs(5), watcher.resolvers.changed()).await.expect("the change was not seen").unwrap();
    asked(watcher)
}

fn asked(watcher: &mut Watcher) -> Vec<SocketAddr> {
    watcher.resolvers.borrow_and_update().as_ref().map(|known| known.asked.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_file_written_in_place_renamed_over_removed_and_made_again() {
    let folder = folder("nameserver 203.0.113.1\n");
    let file = folder.path().join("etc/resolv.conf");
    let mut watcher = watching(folder.path());
    assert_eq!(asked(&mut watcher), addresses(&["203.0.113.1:53"]));
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
    let mut watcher = watching(folder.path());
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
    let mut watcher = watching(folder.path());
    fs::create_dir(folder.path().join("run")).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::create_dir(folder.path().join("run/resolve")).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::write(folder.path().join("run/resolve/resolv.conf"), "nameserver 203.0.113.1\n").unwrap();
    changed(&mut watcher).await;
    assert_eq!(watcher.resolvers.borrow().as_ref().unwrap().upstreams, addresses(&["203.0.113.1:53"]));
}

#[tokio::test]
async fn a_file_that_is_not_there_at_first_is_seen() {
    let folder = folder("");
    let file = folder.path().join("etc/resolv.conf");
    fs::remove_file(&file).unwrap();
    let mut watcher = watching(folder.path());
    assert!(timeout(Duration::from_millis(600), watcher.resolvers.changed()).await.is_err(), "there is none");
    fs::write(&file, "nameserver 203.0.113.1\n").unwrap();
    assert_eq!(changed(&mut watcher).await, addresses(&["203.0.113.1:53"]));
}

/// Also what changed between the reading and the watch is seen.
#[tokio::test]
async fn what_differs_from_what_is_known_is_a_change() {
    let folder = folder("nameserver 203.0.113.2\n");
    let known = SystemResolvers { asked: addresses(&["203.0.113.1:53"]), ..SystemResolvers::default() };
    let mut watcher = watch(paths(folder.path()), Some(known), |_| {});
    assert_eq!(changed(&mut watcher).await, addresses(&["203.0.113.2:53"]));
}

#[tokio::test(start_paused = true)]
async fn without_a_watch_it_is_read_every_minute_and_told_until_there_is_one() {
    let folder = folder("nameserver 203.0.113.1\n");
    // The kernel refuses names as long as this.
    symlink("x".repeat(300), folder.path().join("run")).unwrap();
    let notes = Arc::new(Mutex::new(None));
    let told = Arc::clone(&notes);
    let paths = paths(folder.path());
    let known = read(&paths).ok();
    let mut watcher = watch(paths, known, move |note: Option<String>| *told.lock().unwrap() = note);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let note = notes.lock().unwrap().clone().unwrap();
    assert!(note.contains("etc/resolv.conf") && note.contains("inotify: File name too long"), "{note}");
    fs::write(folder.path().join("etc/resolv.conf"), "nameserver 203.0.113.2\n").unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(asked(&mut watcher), addresses(&["203.0.113.2:53"]));
    fs::remove_file(folder.path().join("run")).unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(*notes.lock().unwrap(), None);
}
