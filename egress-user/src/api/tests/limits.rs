use std::{
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::*;

const SHORT: Duration = Duration::from_millis(200);

/// Sends bytes and reads until the server closes.
async fn raw(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_is_bounded_in_size_and_time() {
    let limits = Limits { head: SHORT, request: SHORT, ..Limits::default() };
    let daemon = Daemon::start(None, limits);
    let long = format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    assert!(raw(&daemon, long.as_bytes()).await.starts_with("HTTP/1.1 431"));
    // Half a head, then silence: hyper closes, with 408 or without a word.
    let answer = raw(&daemon, b"GET /v1/status HTTP/1.1\r\n").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(raw(&daemon, b"\x16\x03\x01 not http\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let error = daemon.client().explain("slow").await.unwrap_err();
    assert!(matches!(error, ClientError::Busy { .. }), "{error:?}");
    assert!(raw(&daemon, b"POST /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    assert!(raw(&daemon, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    assert!(raw(&daemon, b"GET /v1/events?follow=maybe HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert_eq!(daemon.client().status().await.unwrap(), status());
}

#[tokio::test]
async fn clients_are_bounded_in_number_and_followers_leave_room() {
    let limits = Limits { connections: 3, followers: 2, ..Limits::default() };
    let daemon = Daemon::start(None, limits);
    let follow = EventFilter { follow: true, ..EventFilter::default() };
    let first = daemon.client().events(follow.clone()).await.unwrap();
    let _second = daemon.client().events(follow.clone()).await.unwrap();
    let error = daemon.client().events(follow.clone()).await.unwrap_err();
    assert!(matches!(error, ClientError::Busy { .. }), "{error:?}");
    assert_eq!(daemon.client().status().await.unwrap(), status());
    let idle = UnixStream::connect(daemon.socket()).await.unwrap();
    tokio::time::sleep(SHORT).await;
    let error = daemon.client().health().await.unwrap_err();
    assert!(matches!(error, ClientError::Busy { .. }), "{error:?}");
    drop((idle, first));
    tokio::time::sleep(SHORT).await;
    assert!(daemon.client().events(follow.clone()).await.is_ok());
}

#[tokio::test]
async fn an_idle_connection_ends_and_a_follower_stays() {
    let limits = Limits { whole: SHORT, head: Duration::from_secs(60), ..Limits::default() };
    let daemon = Daemon::start(None, limits);
    let follow = EventFilter { follow: true, ..EventFilter::default() };
    let mut live = daemon.client().events(follow).await.unwrap();
    assert_eq!(raw(&daemon, b"GET /v1/st").await, "");
    daemon.hub.publish(policy_event(1));
    assert_eq!(live.next().await.unwrap(), Some(policy_event(1)));
}

#[tokio::test]
async fn a_slow_reader_loses_events_is_told_and_holds_up_nobody() {
    let daemon = Daemon::start(None, Limits::default());
    let follow = EventFilter { follow: true, ..EventFilter::default() };
    let mut slow = daemon.client().events(follow).await.unwrap();
    // 20 MB: far more than all buffers between the hub and a client that does not read.
    for number in 1..=10_000 {
        daemon.hub.publish(policy_event(number));
        if number % 4 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < 10_000 {
        match slow.next().await.unwrap().unwrap().kind {
            Kind::Lost(Lost { count, place: LostWhere::Subscriber }) => lost += count,
            _ => seen += 1,
        }
    }
    assert!(lost > 0 && seen > 0, "{seen} seen, {lost} lost");
}

/// A listener whose backlog is full, and the connections that fill it.
fn full(path: &std::path::Path) -> (OwnedFd, Vec<OwnedFd>) {
    let address = UnixAddr::new(path).unwrap();
    let open = || socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    let listener = open();
    socket::bind(listener.as_raw_fd(), &address).unwrap();
    socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let mut waiting = Vec::new();
    loop {
        let one = open();
        match socket::connect(one.as_raw_fd(), &address) {
            Ok(()) => waiting.push(one),
            Err(Errno::EAGAIN) => return (listener, waiting),
            Err(errno) => panic!("{errno}"),
        }
    }
}

#[tokio::test]
async fn a_client_waits_for_a_place_in_a_full_backlog() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (listener, _waiting) = full(&path);
    let asked = tokio::spawn(async move { Client::new(path).health().await });
    tokio::time::sleep(SHORT).await;
    assert!(!asked.is_finished(), "it waits");
    // Whoever is accepted is let go without an answer.
    while let Ok(stream) = socket::accept(listener.as_raw_fd()) {
        nix::unistd::close(stream).unwrap();
    }
    let listener = tokio::net::UnixListener::from_std(listener.into()).unwrap();
    let (stream, _) = timeout(Duration::from_secs(5), listener.accept()).await.expect("it comes").unwrap();
    drop(stream);
    assert!(matches!(asked.await.unwrap(), Err(ClientError::Protocol { .. })), "the connection was made");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_accepts_nobody_is_busy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let _full = full(&path);
    let error = Client::new(path).health().await.unwrap_err();
    assert!(matches!(error, ClientError::Busy { .. }), "{error:?}");
    assert!(error.to_string().contains("within 5 s"), "{error}");
}
