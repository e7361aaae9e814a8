//! Connections for hickory that honour a resolver's scope: hickory keeps addresses without the interface, so a link-local
//! resolver (`nameserver fe80::1%eth0`) needs its sockets bound to it.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// `scope_id` is an interface index, 0 for none.
#[derive(Clone, Default)]
pub struct Provider {
    tokio: TokioRuntimeProvider,
    scope_id: u32,
}

impl Provider {
    pub fn new(scope_id: u32) -> Self {
        Self { tokio: TokioRuntimeProvider::default(), scope_id }
    }
}

/// The interface of a scope that is one.
///
/// # Errors
/// It is gone. A socket that is bound to no interface at all would ask through any.
pub fn interface(scope_id: u32) -> io::Result<OsString> {
    let name = nix::net::if_::if_indextoname(scope_id)?;
    // nix 0.31 gives an empty name of an index that nobody has.
    if name.is_empty() { Err(nix::Error::ENXIO.into()) } else { Ok(OsString::from_vec(name.into_bytes())) }
}

type Opening<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Provider {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        if self.scope_id == 0 {
            return self.tokio.connect_tcp(server, bind, timeout);
        }
        let scope_id = self.scope_id;
        Box::pin(async move {
            let socket = TcpSocket::new_v6()?;
            socket.bind_device(Some(interface(scope_id)?.as_bytes()))?;
            socket.set_nodelay(true)?;
            let connect = socket.connect(server);
            let stream = match timeout {
                Some(timeout) => tokio::time::timeout(timeout, connect).await.map_err(io::Error::from)??,
                None => connect.await?,
            };
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    /// Over UDP hickory is not asked.
    fn bind_udp(&self, _local: SocketAddr, _server: SocketAddr) -> Opening<Self::Udp> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}
