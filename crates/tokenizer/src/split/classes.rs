//! The class of a code point: a table below U+3000, binary search above.

use super::contains;
use super::unicode_ranges::{LETTERS, NUMBERS, SPACES};

/// What the split needs to know of a character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// None of the others: punctuation, symbols, marks, controls, unassigned.
    Other,
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s` without carriage return and line feed.
    Space,
    /// Carriage return or line feed.
    Newline,
    /// There is no character: the end of the text.
    End,
}

/// Code points below this limit are looked up in `LOW`; it covers the alphabets of Europe and general punctuation.
const N_LOW: usize = 0x3000;

static LOW: [Class; N_LOW] = low_table();

const fn low_table() -> [Class; N_LOW] {
    let mut table = [Class::Other; N_LOW];
    fill(&mut table, &LETTERS, Class::Letter);
    fill(&mut table, &NUMBERS, Class::Number);
    fill(&mut table, &SPACES, Class::Space);
    table[b'\r' as usize] = Class::Newline;
    table[b'\n' as usize] = Class::Newline;
    table
}

/// `for` loops are not yet constant: hence `while`.
pub(super) const fn fill<C: Copy, const N: usize>(
    table: &mut [C; N],
    ranges: &[(u32, u32)],
    class: C,
) {
    let mut i = 0;
    while i < ranges.len() {
        let mut point = ranges[i].0 as usize;
        while point <= ranges[i].1 as usize && point < N {
            table[point] = class;
            point += 1;
        }
        i += 1;
    }
}

/// The class of a code point and of nothing else: never `End`.
#[inline]
pub(super) fn class_of(code_point: u32) -> Class {
    match LOW.get(code_point as usize) {
        Some(&class) => class,
        None => class_by_search(code_point),
    }
}

fn class_by_search(code_point: u32) -> Class {
    if contains(&LETTERS, code_point) {
        Class::Letter
    } else if contains(&NUMBERS, code_point) {
        Class::Number
    } else if contains(&SPACES, code_point) {
        Class::Space
    } else {
        Class::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_search_agree_below_the_limit() {
        for point in 0..N_LOW as u32 {
            let expected = match point {
                0x0A | 0x0D => Class::Newline,
                _ => class_by_search(point),
            };
            assert_eq!(class_of(point), expected, "U+{point:04X}");
        }
    }

    /// Newer Unicode versions add characters; what both versions know must not differ.
    #[test]
    fn classes_agree_with_the_standard_library_where_it_has_the_property() {
        for c in (0..0x11_0000).filter_map(char::from_u32) {
            let class = class_of(c as u32);
            if class == Class::Number {
                assert!(c.is_numeric(), "{c:?}");
            }
            if class == Class::Letter {
                assert!(c.is_alphabetic(), "{c:?}");
            }
            assert_eq!(matches!(class, Class::Space | Class::Newline), c.is_whitespace(), "{c:?}");
        }
    }
}
