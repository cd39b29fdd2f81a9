//! The entries before the tensors: kept as ranges of the file, decoded when asked for.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cursor::Cursor;
use crate::FormatError;

/// Arrays within arrays.
const MAX_DEPTH: usize = 4;

/// Types of values, as the file numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, FormatError> {
        let number = cursor.u32(what)?;
        Self::ALL
            .get(number as usize)
            .copied()
            .ok_or_else(|| cursor.bad(what, format!("value type {number}"), "0 to 12".to_owned()))
    }

    /// Bytes of a value; `None` when they depend on it.
    const fn n_bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }

    /// Moves over a value.
    fn skip(self, cursor: &mut Cursor<'_>, what: &str, depth: usize) -> Result<(), FormatError> {
        if let Some(n_bytes) = self.n_bytes() {
            return cursor.take(n_bytes, what).map(|_| ());
        }
        if self == Self::Text {
            let n = cursor.u64(what)?;
            return cursor.take(n, what).map(|_| ());
        }
        if depth == MAX_DEPTH {
            return Err(cursor.bad(what, "deeper arrays", format!("at most {MAX_DEPTH} levels")));
        }
        let kind = Self::read(cursor, what)?;
        let n = cursor.u64(what)?;
        if let Some(n_bytes) = kind.n_bytes() {
            return cursor.take(n.saturating_mul(n_bytes), what).map(|_| ());
        }
        // Each of these takes at least eight bytes, so a lie ends with the file.
        for _ in 0..n {
            kind.skip(cursor, what, depth + 1)?;
        }
        Ok(())
    }

    /// Decodes a value whose bytes were walked before.
    fn decode(self, bytes: &[u8]) -> Option<Value<'_>> {
        Some(match self {
            Self::U8 => Value::Unsigned(bytes.first().copied()?.into()),
            Self::I8 => Value::Signed(bytes.first().copied()?.cast_signed().into()),
            Self::Bool => Value::Bool(*bytes.first()? != 0),
            Self::U16 => Value::Unsigned(u16::from_le_bytes(*bytes.first_chunk()?).into()),
            Self::I16 => Value::Signed(i16::from_le_bytes(*bytes.first_chunk()?).into()),
            Self::U32 => Value::Unsigned(u32::from_le_bytes(*bytes.first_chunk()?).into()),
            Self::I32 => Value::Signed(i32::from_le_bytes(*bytes.first_chunk()?).into()),
            Self::U64 => Value::Unsigned(u64::from_le_bytes(*bytes.first_chunk()?)),
            Self::I64 => Value::Signed(i64::from_le_bytes(*bytes.first_chunk()?)),
            Self::F32 => Value::Float(f32::from_le_bytes(*bytes.first_chunk()?).into()),
            Self::F64 => Value::Float(f64::from_le_bytes(*bytes.first_chunk()?)),
            Self::Text => Value::Text(bytes.get(8..)?),
            Self::Array => {
                let number = u32::from_le_bytes(*bytes.first_chunk()?);
                let kind = *Self::ALL.get(number as usize)?;
                let n = u64::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
                Value::Array(Array { kind, n: usize::try_from(n).ok()?, bytes: bytes.get(12..)? })
            }
        })
    }
}

/// One value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A whole number of an unsigned type.
    Unsigned(u64),
    /// A whole number of a signed type.
    Signed(i64),
    /// A number of floating point.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text, which should be UTF-8.
    Text(&'a [u8]),
    /// Values of one type.
    Array(Array<'a>),
}

/// Values of one type, one after the other in the file.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    n: usize,
    bytes: &'a [u8],
}

impl std::fmt::Debug for Array<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "array of {} {:?}", self.n, self.kind)
    }
}

impl<'a> Array<'a> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The values; arrays of arrays end at the first.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> {
        let (kind, mut bytes) = (self.kind, self.bytes);
        (0..self.n).map_while(move |_| {
            let len = match kind {
                Kind::Text => {
                    8 + usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?
                }
                Kind::Array => return None,
                other => other.n_bytes()? as usize,
            };
            let (value, rest) = bytes.split_at_checked(len)?;
            bytes = rest;
            kind.decode(value)
        })
    }
}

/// The entries of a file.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    entries: BTreeMap<String, (Kind, Range<usize>)>,
}

impl Metadata {
    pub(super) fn read(cursor: &mut Cursor<'_>, n_entries: usize) -> Result<Self, FormatError> {
        let mut entries = BTreeMap::new();
        for _ in 0..n_entries {
            let key = cursor.text("metadata key")?;
            let kind = Kind::read(cursor, key)?;
            let begin = cursor.position();
            kind.skip(cursor, key, 0)?;
            if entries.insert(key.to_owned(), (kind, begin..cursor.position())).is_some() {
                return Err(cursor.bad("metadata key", key, "each key once".to_owned()));
            }
        }
        Ok(Self { entries })
    }

    /// The value of a key, in the bytes of the file that the entries were read from.
    pub(super) fn get<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Value<'a>> {
        let (kind, range) = self.entries.get(key)?;
        kind.decode(&bytes[range.clone()])
    }
}
