//! Opens the port, accepts connections, ends in order.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::config::{ServerConfig, ServerLimits};
use crate::registry::ModelRegistry;
use crate::stall::Impatient;
use crate::{ServerError, app};

/// Largest head of a request: request line and headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Pause after the system refused to accept a connection, usually because files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Threads that read and write connections; computing is done elsewhere.
const N_IO_THREADS: usize = 2;

/// A server whose port is open: connections wait until it is started.
pub struct BoundServer {
    config: ServerConfig,
    address: SocketAddr,
    listener: TcpListener,
}

/// Opens the port, so that a busy one is noticed before any work is done.
///
/// # Errors
///
/// [`ServerError::NotLoopback`], [`ServerError::PortBusy`], [`ServerError::PortForbidden`] or [`ServerError::Listen`].
pub fn bind(config: ServerConfig) -> Result<BoundServer, ServerError> {
    let asked = config.address;
    if !asked.ip().is_loopback() {
        return Err(ServerError::NotLoopback { address: asked });
    }
    let failed = |source| ServerError::listen(asked, source);
    let listener = TcpListener::bind(asked).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(BoundServer { config, address, listener })
}

impl BoundServer {
    /// The address with its real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on, on a thread of its own; models may be added to `models` later.
    ///
    /// # Errors
    ///
    /// [`ServerError::Start`] if the system refuses threads.
    pub fn start(self, models: ModelRegistry) -> Result<RunningServer, ServerError> {
        let failed = |what| move |source| ServerError::Start { what, source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(N_IO_THREADS)
            .thread_name("server-io")
            .enable_all()
            .build()
            .map_err(failed("the threads for connections"))?;
        let (stop, stopped) = watch::channel(false);
        let address = self.address;
        let thread = std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || run(runtime, self, models, stopped))
            .map_err(failed("the server thread"))?;
        Ok(RunningServer { address, stop, thread })
    }
}

/// A server that answers. Dropping it tells it to stop without waiting.
pub struct RunningServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<(), ServerError>>,
}

impl RunningServer {
    /// The address with its real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses new connections, lets answers in progress finish within the grace period, and returns.
    ///
    /// # Errors
    ///
    /// What ended the server before it was told to.
    pub fn stop(self) -> Result<(), ServerError> {
        let _ = self.stop.send(true);
        self.thread.join().map_err(|_| ServerError::Panicked)?
    }
}

fn run(
    runtime: Runtime,
    server: BoundServer,
    models: ModelRegistry,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let BoundServer { config, address, listener } = server;
    let outcome = runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|source| ServerError::Listen { address, source })?;
        info!(%address, "listening");
        let router = app::router(models, config.limits);
        accept(listener, router, config.limits, stopped).await;
        Ok(())
    });
    // Work on blocking threads is short, but for the loading of a model, and nothing may keep the process from ending.
    runtime.shutdown_timeout(config.limits.shutdown_grace);
    outcome
}

/// Accepts until told to stop, then waits for the connections.
async fn accept(
    listener: tokio::net::TcpListener,
    router: Router,
    limits: ServerLimits,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener, &places) => accepted,
            // An error means that the sender is gone, which is a wish to stop as well.
            _ = stopped.wait_for(|&stop| stop) => break,
        };
        if let Some((stream, place)) = accepted {
            connections.spawn(connection(stream, place, router.clone(), limits, stopped.clone()));
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    debug!(n_connections = connections.len(), "waiting for connections to end");
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.shutdown_grace, all_ended).await.is_err() {
        warn!("the grace period is over, answers in progress are cut off");
    }
}

/// The next connection and its place among those allowed.
async fn accept_one(
    listener: &tokio::net::TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    router: Router,
    limits: ServerLimits,
    mut stopped: watch::Receiver<bool>,
) {
    // Small events must not wait for larger ones.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot switch off buffering");
    }
    let stream = Impatient::new(stream, limits.stall_timeout);
    // hyper notices the end of a connection only while no byte of a next request waits in its buffer.
    let client_gone = stream.client_gone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let served = async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            outcome = &mut connection => return outcome,
            // An error means that the sender is gone, which is a wish to stop as well.
            _ = stopped.wait_for(|&stop| stop) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    // Dropping the connection ends what works for it.
    tokio::select! {
        outcome = served => {
            if let Err(error) = outcome {
                debug!(%error, "connection ended");
            }
        }
        () = client_gone => debug!("the client went away"),
    }
    drop(place);
}
