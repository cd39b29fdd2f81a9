//! Numbers for worked sums: every result that a text states is computed here.
//!
//! The letters H, F, X and Y are left to the texts, for people and things.

use super::expand::{Page, Value};

fn bind(page: &mut Page<'_>, numbers: &[(char, i64)]) {
    for &(letter, number) in numbers {
        page.set(letter, Value::Number(number));
    }
}

/// A + B = S; C and D are the tens and units of A, E and G those of B; I = C + E, K = D + G.
pub(super) fn sum(page: &mut Page<'_>) {
    let a = page.random.between(1, 89) * 10 + page.random.between(1, 9);
    let b = page.random.between(1, 39) * 10 + page.random.between(1, 9);
    let (d, g) = (a % 10, b % 10);
    let (c, e) = (a - d, b - g);
    bind(
        page,
        &[
            ('A', a),
            ('B', b),
            ('S', a + b),
            ('C', c),
            ('D', d),
            ('E', e),
            ('G', g),
            ('I', c + e),
            ('K', d + g),
        ],
    );
}

/// A - B = S; C and D are the tens and units of B, E = A - C.
pub(super) fn difference(page: &mut Page<'_>) {
    let b = page.random.between(1, 39) * 10 + page.random.between(1, 9);
    let a = b + page.random.between(12, 480);
    let d = b % 10;
    let c = b - d;
    bind(page, &[('A', a), ('B', b), ('S', a - b), ('C', c), ('D', d), ('E', a - c)]);
}

/// A x B = S; C and D are the tens and units of B, E = A x C, G = A x D.
pub(super) fn product(page: &mut Page<'_>) {
    let a = page.random.between(3, 19);
    let b = page.random.between(1, 9) * 10 + page.random.between(1, 9);
    let d = b % 10;
    let c = b - d;
    bind(page, &[('A', a), ('B', b), ('S', a * b), ('C', c), ('D', d), ('E', a * c), ('G', a * d)]);
}

/// A = B x S + R with R < B and P = B x S.
pub(super) fn quotient(page: &mut Page<'_>) {
    let b = page.random.between(3, 15);
    let s = page.random.between(4, 58);
    let r = page.random.between(1, b - 1);
    bind(page, &[('A', b * s + r), ('B', b), ('S', s), ('R', r), ('P', b * s), ('D', b - r)]);
}

/// A things at P and B things at Q: C = A x P, D = B x Q, S = C + D, paid with M, change R.
pub(super) fn purchase(page: &mut Page<'_>) {
    let (a, p) = (page.random.between(2, 14), page.random.between(2, 29));
    let (b, q) = (page.random.between(2, 14), page.random.between(2, 29));
    let s = a * p + b * q;
    let step = *page.random.pick(&[10, 20, 50, 100]);
    let m = (s / step + 1) * step;
    bind(
        page,
        &[
            ('A', a),
            ('P', p),
            ('B', b),
            ('Q', q),
            ('C', a * p),
            ('D', b * q),
            ('S', s),
            ('M', m),
            ('R', m - s),
        ],
    );
}

/// The sequence A, B, C, D, E with the step G, then S.
pub(super) fn sequence(page: &mut Page<'_>) {
    let a = page.random.between(1, 210);
    let g = page.random.between(2, 47);
    bind(
        page,
        &[
            ('A', a),
            ('B', a + g),
            ('C', a + 2 * g),
            ('D', a + 3 * g),
            ('E', a + 4 * g),
            ('G', g),
            ('S', a + 5 * g),
        ],
    );
}

/// From A:B, D minutes (E hours and G minutes) lead to S:R; all minutes have two digits.
pub(super) fn duration(page: &mut Page<'_>) {
    let a = page.random.between(5, 18);
    let b = page.random.between(10, 49);
    let e = page.random.between(1, 4);
    let r = page.random.between(b + 1, 59);
    let g = r - b;
    let s = a + e;
    let numbers = [
        ('A', a),
        ('B', b),
        ('D', e * 60 + g),
        ('E', e),
        ('G', g),
        ('S', s),
        ('R', r),
        ('C', e * 60),
    ];
    bind(page, &numbers);
}

/// P percent of A is S, with C = A / 100 and T = A - S.
pub(super) fn percent(page: &mut Page<'_>) {
    let p = page.random.between(1, 19) * 5;
    let c = page.random.between(1, 90);
    bind(page, &[('A', c * 100), ('P', p), ('C', c), ('S', c * p), ('T', c * (100 - p))]);
}

/// Two ages: A and B = A + D; in E years they are C and G; S = A + B.
pub(super) fn ages(page: &mut Page<'_>) {
    let a = page.random.between(6, 49);
    let d = page.random.between(2, 38);
    let e = page.random.between(3, 24);
    let b = a + d;
    let numbers =
        [('A', a), ('B', b), ('D', d), ('E', e), ('C', a + e), ('G', b + e), ('S', a + b)];
    bind(page, &numbers);
}

/// The mean M of A, B, C, whose sum is S.
pub(super) fn mean(page: &mut Page<'_>) {
    let m = page.random.between(12, 190);
    let up = page.random.between(1, 11);
    let down = page.random.between(1, 11);
    let numbers = [('A', m + up), ('B', m - down), ('C', m - up + down), ('S', 3 * m), ('M', m)];
    bind(page, &numbers);
}

/// A is more than B by D.
pub(super) fn comparison(page: &mut Page<'_>) {
    let b = page.random.between(14, 780);
    let d = page.random.between(3, 190);
    bind(page, &[('A', b + d), ('B', b), ('D', d), ('S', b + b + d)]);
}
