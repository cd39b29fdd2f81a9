//! Reading the binary form of Protocol Buffers, as far as `tokenizer.model` uses it.

use crate::error::Error;

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Number(u64),
    Float(f32),
    /// A string, bytes or a message.
    Bytes(Message<'a>),
    /// Eight bytes, which no field of ours has.
    Wide,
}

/// The fields of a message, in the order of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Where the message begins in the file.
    offset: usize,
}

impl<'a> Message<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Message<'a> {
        Message { bytes, position: 0, offset: 0 }
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn text(&self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes).map_err(|_| self.error("a string is not UTF-8"))
    }

    pub(super) fn error(&self, problem: &'static str) -> Error {
        Error::Protobuf { offset: self.offset + self.position, problem }
    }

    /// The next field: its number and its value; `None` at the end.
    pub(super) fn next_field(&mut self) -> Result<Option<(u64, Value<'a>)>, Error> {
        if self.position == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Wide
            }
            2 => {
                let n_bytes = self.varint()?;
                let n_bytes = usize::try_from(n_bytes)
                    .map_err(|_| self.error("a length is beyond the end of the message"))?;
                let bytes = self.take(n_bytes)?;
                let offset = self.offset + self.position - n_bytes;
                Value::Bytes(Message { bytes, position: 0, offset })
            }
            5 => {
                let bytes = self.take(4)?;
                let bits = bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte));
                Value::Float(f32::from_bits(bits))
            }
            _ => return Err(self.error("a field has a kind that does not exist")),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.position..];
        let taken = rest
            .get(..n_bytes)
            .ok_or_else(|| self.error("a length is beyond the end of the message"))?;
        self.position += n_bytes;
        Ok(taken)
    }

    /// A number in groups of seven bits, lowest first.
    fn varint(&mut self) -> Result<u64, Error> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.error("a number has more than 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_kind_are_read() {
        // Field 1: 300; field 2: "ab"; field 3: 1.5; field 4: eight bytes.
        let bytes = [
            0x08, 0xAC, 0x02, 0x12, 2, b'a', b'b', 0x1D, 0, 0, 0xC0, 0x3F, 0x21, 0, 0, 0, 0, 0, 0,
            0, 0,
        ];
        let mut message = Message::new(&bytes);
        let mut next = || message.next_field().unwrap();
        assert!(matches!(next(), Some((1, Value::Number(300)))));
        let Some((2, Value::Bytes(text))) = next() else { panic!() };
        assert_eq!(text.text().unwrap(), "ab");
        assert!(matches!(next(), Some((3, Value::Float(1.5)))));
        assert!(matches!(next(), Some((4, Value::Wide))));
        assert!(next().is_none());
    }

    #[test]
    fn broken_messages_are_errors_with_their_place() {
        for (bytes, expected) in [
            (&[0x08][..], "at byte 1: a length is beyond"),
            (&[0x12, 3, 1], "at byte 2: a length is beyond"),
            (&[0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], "at byte 11"),
            (&[0x0B], "does not exist"),
            (&[0x1D, 0, 0], "at byte 1"),
        ] {
            let message = Message::new(bytes).next_field().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
