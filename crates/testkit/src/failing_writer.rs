//! A writer on a disk that fills up.

use std::io::{self, ErrorKind, Write};

/// Passes bytes on to `inner` until `remaining_bytes` are written, then fails with [`ErrorKind::StorageFull`]. The write
/// that meets the limit is short, as on a real file system.
#[derive(Debug)]
pub struct FailingWriter<W> {
    /// Where accepted bytes go.
    pub inner: W,
    /// How many more bytes are accepted.
    pub remaining_bytes: usize,
}

impl<W: Write> Write for FailingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.remaining_bytes == 0 {
            return Err(io::Error::from(ErrorKind::StorageFull));
        }
        let accepted = bytes.len().min(self.remaining_bytes);
        let written = self.inner.write(&bytes[..accepted])?;
        self.remaining_bytes -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::FailingWriter;
    use std::io::{ErrorKind, Write};

    #[test]
    fn fails_after_exactly_the_allowed_bytes() {
        let mut writer = FailingWriter { inner: Vec::new(), remaining_bytes: 5 };
        writer.write_all(b"abc").unwrap();
        let error = writer.write_all(b"defg").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!(writer.inner, b"abcde");
        assert_eq!(writer.write(b"").unwrap(), 0);
    }
}
