//! Sockets for hickory that honour a resolver's scope: hickory keeps addresses without the interface, so a link-local
//! resolver (`nameserver fe80::1%eth0`) needs its sockets bound to it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
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

fn interface(scope_id: u32) -> io::Result<Option<Vec<u8>>> {
    if scope_id == 0 {
        return Ok(None);
    }
    let name = nix::net::if_::if_indextoname(scope_id)?;
    Ok(Some(name.to_bytes().to_vec()))
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
            socket.bind_device(interface(scope_id)?.as_deref())?;
            socket.set_nodelay(true)?;
            let connect = socket.connect(server);
            let stream = match timeout {
                Some(timeout) => tokio::time::timeout(timeout, connect).await.map_err(io::Error::from)??,
                None => connect.await?,
            };
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> Opening<Self::Udp> {
        let scope_id = self.scope_id;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            if let Some(interface) = interface(scope_id)? {
                socket.bind_device(Some(&interface))?;
            }
            Ok(socket)
        })
    }
}
