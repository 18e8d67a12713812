//! The way from the machine's own network to the API server, which listens in a namespace of its own: a port on loopback that
//! hands bytes through. So no two clusters, and no other program, ever want the same address.

use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::error::{LabError, cannot};
use crate::netns::Netns;

/// A relay that runs until it is dropped; then its connections end too.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens on a free port of this namespace and connects to `to` inside `netns`.
    pub(crate) fn start(netns: &Netns, to: SocketAddr) -> Result<Self, LabError> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(cannot("listen on loopback"))?;
        listener.set_nonblocking(true).map_err(cannot("make a listener non-blocking"))?;
        let address = listener.local_addr().map_err(cannot("ask a listener for its port"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(cannot("make a runtime"))?;
        let (end, ended) = oneshot::channel();
        let netns = netns.clone();
        let thread = thread::spawn(move || {
            // The listener stays where it was made; connections are made where this thread is.
            drop(netns.run(|| runtime.block_on(serve(listener, to, ended))));
        });
        Ok(Self { address, end: Some(end), thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, mut ended: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut ended => return,
        };
        // An error concerns one connection that its client has given up.
        let Ok((mut client, _)) = accepted else { continue };
        // Ends with either side, or with the runtime; errors are for those sides to see.
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(to).await {
                drop(copy_bidirectional(&mut client, &mut server).await);
            }
        });
    }
}
