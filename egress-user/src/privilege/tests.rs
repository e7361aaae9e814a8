//! Each filter is put on a thread of its own: a restricted thread stays so until it ends.

use std::{fs, io, net::UdpSocket, os::fd::AsRawFd as _, path::PathBuf, process::Command, thread};

use super::*;

fn restricted<T: Send + 'static>(role: Role, writable: &[PathBuf], f: impl FnOnce() -> T + Send + 'static) -> T {
    let writable = writable.to_vec();
    thread::spawn(move || {
        prctl::set_no_new_privs().unwrap();
        if role == Role::Control {
            landlock::restrict(&writable).unwrap();
        }
        seccomp::install(role).unwrap();
        f()
    })
    .join()
    .unwrap()
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    // SAFETY: three numbers; the descriptor, if any, is closed at once.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made here and is used by nobody else.
    unsafe { libc::close(fd) };
    Ok(())
}

const EPERM: Option<i32> = Some(libc::EPERM);

/// P9: what a compromised resolver would want fails: a process, a raw or packet socket, tracing another process.
#[test]
fn p9_the_filter_refuses_what_the_daemon_never_does() {
    restricted(Role::Control, &[], || {
        assert_eq!(Command::new("/bin/true").status().unwrap_err().raw_os_error(), EPERM);
        assert_eq!(socket(libc::AF_PACKET, libc::SOCK_RAW).unwrap_err().raw_os_error(), EPERM);
        assert_eq!(socket(libc::AF_VSOCK, libc::SOCK_STREAM).unwrap_err().raw_os_error(), EPERM);
        for call in [libc::SYS_ptrace, libc::SYS_mount, libc::SYS_setns, libc::SYS_unshare, libc::SYS_init_module] {
            // SAFETY: zeros for arguments: refused by the filter, and harmless where it were not.
            let result = unsafe { libc::syscall(call, 0, 0, 0, 0, 0) };
            assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, EPERM), "call {call}");
        }
    });
}

/// P9: what it does works: files, DNS' sockets, threads, and signals it may catch.
#[test]
fn the_filter_lets_the_daemon_work() {
    restricted(Role::Control, &[], || {
        assert!(fs::read_to_string("/proc/self/status").is_ok());
        let one = UdpSocket::bind("127.0.0.1:0").unwrap();
        one.send_to(b"x", one.local_addr().unwrap()).unwrap();
        assert_eq!(one.recv(&mut [0; 8]).unwrap(), 1);
        assert!(socket(libc::AF_NETLINK, libc::SOCK_RAW).is_ok());
        thread::Builder::new().name("a-thread".to_owned()).spawn(|| ()).unwrap().join().unwrap();
        assert!(one.as_raw_fd() > 0);
    });
}

/// P9: the thread that looks processes up has no sockets and no `bpf`.
#[test]
fn p9_the_events_thread_has_no_sockets() {
    restricted(Role::Events, &[], || {
        assert!(fs::read_to_string("/proc/self/stat").is_ok());
        assert_eq!(socket(libc::AF_INET, libc::SOCK_DGRAM).unwrap_err().raw_os_error(), EPERM);
        // SAFETY: BPF_MAP_CREATE with no attributes: refused by the filter, and EFAULT where it were not.
        let result = unsafe { libc::syscall(libc::SYS_bpf, 0, 0, 0) };
        assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, EPERM));
    });
}

/// P9: writing is for the directories that are named.
#[test]
fn p9_nothing_is_written_elsewhere() {
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(other.path().join("policy.yaml"), "version: 1\n").unwrap();
    let (own, foreign) = (mine.path().join("state"), other.path().join("policy.yaml"));
    restricted(Role::Control, &[mine.path().to_owned()], move || {
        fs::write(&own, "x").unwrap();
        fs::rename(&own, own.with_extension("old")).unwrap();
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "version: 1\n");
        assert_eq!(fs::write(&foreign, "x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(fs::remove_file(&foreign).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    });
}
