use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Runs `what` on a thread of other credentials: the system calls, unlike libc's functions, change one thread alone.
pub(super) fn as_user<T: Send>(user: u32, groups: &[u32], what: impl FnOnce() -> T + Send) -> T {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: plain system calls; the groups are valid memory of the length given.
            let failed = unsafe {
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr())
                    | libc::syscall(libc::SYS_setresgid, user, user, user)
                    | libc::syscall(libc::SYS_setresuid, user, user, user)
            };
            assert_eq!(failed, 0);
            what()
        });
        thread.join().unwrap()
    })
}

/// The status code of `GET /v1/health`, or the error of the connection.
fn ask(path: &Path) -> Result<u16, std::io::ErrorKind> {
    get(path, "/v1/health")
}

fn get(path: &Path, resource: &str) -> Result<u16, std::io::ErrorKind> {
    let mut stream = UnixStream::connect(path).map_err(|error| error.kind())?;
    // A server that refuses does not wait for the request.
    let _ = stream.write_all(format!("GET {resource} HTTP/1.1\r\nhost: egress\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_only_root_may_ask() {
    let daemon = Daemon::start(None, Limits::default());
    let socket = daemon.socket();
    fs::set_permissions(daemon.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o755));
    assert_eq!(as_user(4321, &[], || ask(&socket)), Err(std::io::ErrorKind::PermissionDenied));
    // Even where somebody opened the file's mode, the peer is checked.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(as_user(4321, &[0], || ask(&socket)), Ok(403));
    assert_eq!(ask(&socket), Ok(503), "not healthy, and answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_the_sockets_group_may_read() {
    let daemon = Daemon::start(Some(7654), Limits::default());
    let socket = daemon.socket();
    fs::set_permissions(daemon.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!((mode(&socket), fs::metadata(&socket).unwrap().gid()), (0o660, 7654));
    assert_eq!(as_user(4321, &[1, 7654], || ask(&socket)), Ok(503), "a member by a supplementary group");
    assert_eq!(as_user(7654, &[], || ask(&socket)), Ok(503), "a member by its own group");
    assert_eq!(as_user(4321, &[1], || ask(&socket)), Err(std::io::ErrorKind::PermissionDenied));
    // Running the attached programs is more than reading.
    let packet = || get(&socket, "/v1/packet?packet=tcp%20192.0.2.1:443");
    assert_eq!(as_user(4321, &[1, 7654], packet), Ok(403));
    assert_eq!(packet(), Ok(400), "root is answered: this source has no programs");
}

#[tokio::test]
async fn a_second_daemon_is_refused_by_name() {
    let daemon = Daemon::start(None, Limits::default());
    let options = SocketOptions { path: daemon.socket(), group: None };
    let error = Server::bind(&options).unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error:?}");
    assert!(error.to_string().contains(&daemon.socket().display().to_string()), "{error}");
    // Also where the lock is gone: somebody answers.
    fs::remove_file(daemon.directory.path().join("run/egress.sock.lock")).unwrap();
    assert!(matches!(Server::bind(&options), Err(ListenError::InUse(_))));
    assert_eq!(daemon.client().status().await.unwrap().generation, 3, "the first one goes on");
}

#[tokio::test]
async fn a_dead_daemons_socket_is_taken_over_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("egress.sock");
    let options = SocketOptions { path: path.clone(), group: None };
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::new(&path).status().await, Err(ClientError::NoDaemon(_))));
    drop(Server::bind(&options).unwrap());
    assert!(!path.exists());

    fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(&options), Err(ListenError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    let foreign = UnixListener::bind(&path).unwrap();
    assert!(matches!(Server::bind(&options), Err(ListenError::InUse(_))));
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    drop(foreign);

    let long = SocketOptions { path: directory.path().join("x".repeat(120)), group: None };
    assert!(matches!(Server::bind(&long), Err(ListenError::TooLong(_))));
}

#[tokio::test]
async fn errors_name_the_socket_and_say_what_to_do() {
    let error = Client::new("/nonexistent/egress.sock").status().await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/egress.sock") && error.contains("egress run"), "{error}");
    let daemon = Daemon::start(None, Limits::default());
    fs::set_permissions(daemon.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = daemon.socket();
    let error = tokio::task::spawn_blocking(move || {
        as_user(4321, &[], || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Client::new(socket).status()).unwrap_err().to_string()
        })
    })
    .await
    .unwrap();
    assert!(error.contains("as root"), "{error}");

    let path = daemon.directory.path().join("other.sock");
    let other = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || other.accept().map(|(mut stream, _)| stream.write_all(b"SSH-2.0-x\r\n")));
    let error = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
}
