//! A bound on clients that do not read, and notice of those that went away.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Time between two looks at a client whose bytes wait to be read, and the time that one which sends no more has to get an
/// answer that is nearly there.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A connection whose writes fail when nothing moves for some time: a client that does not read must not keep its place
/// for ever.
pub(crate) struct Impatient {
    reader: Arc<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    timeout: Duration,
    stalled: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Impatient {
    pub(crate) fn new(stream: TcpStream, timeout: Duration) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: Arc::new(reader), writer, timeout, stalled: None }
    }

    /// Ends soon after the client has closed its side, also while bytes of it wait to be read: what works for it then works
    /// for nobody. A client that only says that it sends no more is taken for gone as well; HTTP/1.1 cannot tell them apart.
    pub(crate) fn client_gone(&self) -> impl Future<Output = ()> + use<> {
        let reader = Arc::clone(&self.reader);
        async move {
            while let Ok(found) = reader.ready(Interest::READABLE).await {
                // Bytes that wait make the socket ready again at once: looking without a pause would keep a thread busy.
                tokio::time::sleep(LOOK_INTERVAL).await;
                if found.is_read_closed() {
                    return;
                }
            }
        }
    }

    fn within<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let timeout = self.timeout;
        let sleep = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        sleep.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream: &TcpStream = (*self.reader).as_ref();
        loop {
            ready!(stream.poll_read_ready(context))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                // The system had said so too early: wait again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome.map(|n_bytes| buffer.advance(n_bytes))),
            }
        }
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.writer).poll_write(context, bytes);
        self.within(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.writer).poll_write_vectored(context, parts);
        self.within(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn with_connection<F: Future<Output = ()>>(test: impl FnOnce(Impatient, TcpStream) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            test(Impatient::new(stream, Duration::from_millis(50)), client).await;
        });
    }

    #[test]
    fn writing_to_a_client_that_does_not_read_fails() {
        with_connection(|mut writer, client| async move {
            // Far more than the system keeps for a connection.
            let error = writer.write_all(&vec![0; 64 << 20]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            drop(client);
        });
    }

    #[test]
    fn a_client_that_pauses_between_reads_gets_all_of_it() {
        with_connection(|mut writer, mut client| async move {
            let n_bytes = 16 << 20;
            let sent = tokio::spawn(async move { writer.write_all(&vec![7; n_bytes]).await });
            let (mut buffer, mut n_read) = (vec![0; 2 << 20], 0);
            while n_read < n_bytes {
                tokio::time::sleep(Duration::from_millis(1)).await;
                n_read += client.read(&mut buffer).await.unwrap();
            }
            sent.await.unwrap().unwrap();
        });
    }
}
