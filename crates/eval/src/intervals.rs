//! 95 % intervals of a share of right answers, for independent questions and for questions about common facts.

use serde::{Deserialize, Serialize};

/// The 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// An interval of shares, within 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Nothing is known.
    pub const ALL: Self = Self { low: 0.0, high: 1.0 };

    /// Whether a share lies in it, ends included.
    #[must_use]
    pub fn contains(&self, share: f64) -> bool {
        self.low <= share && share <= self.high
    }
}

/// Questions that stand or fall together, such as all about one fact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Right answers.
    pub n_right: u64,
    /// Questions.
    pub n_questions: u64,
}

/// Wilson's score interval at 95 % for a share `p` of `n` independent questions, which need not be whole:
/// `(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`.
///
/// Source: Wilson, JASA 22 (1927), 209-212; method 3 of Newcombe, Statistics in Medicine 17 (1998), 857-872.
fn wilson_of_share(p: f64, n: f64) -> Interval {
    let z2 = Z * Z;
    let middle = p + z2 / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    // At p = 0 and p = 1 the ends are exactly 0 and 1, which rounding may miss.
    let low = if p == 0.0 { 0.0 } else { (middle - half) / scale };
    let high = if p == 1.0 { 1.0 } else { (middle + half) / scale };
    Interval { low: low.clamp(0.0, 1.0), high: high.clamp(0.0, 1.0) }
}

/// Weight of the right cluster and of the wrong one that are imagined beside the real ones.
const IMAGINED: f64 = 0.5;

/// Interval at 95 % for questions in clusters: Wilson's with the effective number of questions.
///
/// With `G` clusters of `n_g` questions, of which `r_g` are right, `n = sum n_g` and `p = sum r_g / n`, the variance of `p`
/// as a ratio is `v = G / (G - 1) sum (r_g - p n_g)^2 / n^2`, and the design effect `d = v n / (p (1 - p))`, at least 1. The
/// interval is Wilson's for `p` with `n / d (t(n - 1) / t(G - 1))^2` questions; the factor pays for having estimated `v`, `t`
/// being the 97.5 % point of Student's distribution.
///
/// Where nearly all answers are right or nearly all are wrong, `v` rests on a few of them and is often far too small: with
/// one stray right answer the questions would count as independent. So `d`, and nothing else, is computed with half a
/// cluster of mean size that is all right and half a one that is all wrong beside the real ones. The price is an interval
/// that is too wide where there are few clusters and the questions within them are really independent. The tests of this
/// module simulate the coverage.
///
/// It holds for independent clusters, drawn from more like them. One cluster alone gives 0 to 1.
///
/// Source: effective size and `t` factor from Korn and Graubard, Survey Methodology 24 (1998), 193-201, put into Wilson's
/// interval as in Dean and Pagano, Journal of Survey Statistics and Methodology 3 (2015), 484-503. The imagined clusters
/// are ours.
///
/// # Panics
/// When more answers of a cluster are right than were asked.
#[must_use]
pub fn clustered(clusters: &[Cluster]) -> Interval {
    let mut total = Cluster::default();
    let mut n_clusters = 0_u64;
    for cluster in clusters.iter().filter(|cluster| cluster.n_questions > 0) {
        let Cluster { n_right, n_questions } = *cluster;
        assert!(n_right <= n_questions, "{n_right} right of {n_questions} in a cluster");
        total.n_right += n_right;
        total.n_questions += n_questions;
        n_clusters += 1;
    }
    if n_clusters < 2 {
        return Interval::ALL;
    }
    let (n, g) = (total.n_questions as f64, n_clusters as f64);
    let p = total.n_right as f64 / n;
    let n_eff = n / design_effect(clusters, p, n, g);
    let factor = student(n - 1.0) / student(g - 1.0);
    wilson_of_share(p, n_eff * factor * factor)
}

/// How many questions are worth one independent question: `n` of them in `g` clusters, a share `p` of them right, with the
/// imagined clusters beside them.
fn design_effect(clusters: &[Cluster], p: f64, n: f64, g: f64) -> f64 {
    let extra = IMAGINED * n / g;
    let (n, g, p) = (n + 2.0 * extra, g + 2.0 * IMAGINED, (p * n + extra) / (n + 2.0 * extra));
    let squares = clusters.iter().map(|cluster| {
        let deviation = cluster.n_right as f64 - p * cluster.n_questions as f64;
        deviation * deviation
    });
    let size = extra / IMAGINED;
    let imagined = IMAGINED * size * size * (p * p + (1.0 - p) * (1.0 - p));
    let variance = g / (g - 1.0) * (squares.sum::<f64>() + imagined) / (n * n);
    (variance * n / (p * (1.0 - p))).max(1.0)
}

/// The 97.5 % point of Student's distribution with `df` degrees of freedom, at least 1. Exact for 1 and 2; above, the
/// expansion of Abramowitz and Stegun 26.7.5, within 0.2 %.
fn student(df: f64) -> f64 {
    if df < 2.0 {
        return 12.706_204_736;
    }
    if df < 3.0 {
        return 4.302_652_730;
    }
    let [z1, z3, z5, z7, z9] = [1, 3, 5, 7, 9].map(|power| Z.powi(power));
    let g1 = (z3 + z1) / 4.0;
    let g2 = (5.0 * z5 + 16.0 * z3 + 3.0 * z1) / 96.0;
    let g3 = (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z1) / 384.0;
    let g4 = (79.0 * z9 + 776.0 * z7 + 1482.0 * z5 - 1920.0 * z3 - 945.0 * z1) / 92_160.0;
    z1 + (g1 + (g2 + (g3 + g4 / df) / df) / df) / df
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use testkit::random::Rng;

    fn assert_interval(got: Interval, low: f64, high: f64) {
        assert!((got.low - low).abs() < 5e-5, "{got:?}, expected {low} to {high}");
        assert!((got.high - high).abs() < 5e-5, "{got:?}, expected {low} to {high}");
    }

    /// The interval of independent questions; without any, nothing is known.
    fn wilson(n_right: u64, n_questions: u64) -> Interval {
        match n_questions {
            0 => Interval::ALL,
            n => wilson_of_share(n_right as f64 / n as f64, n as f64),
        }
    }

    #[test]
    fn wilson_equals_the_published_table() {
        // Newcombe 1998, table I, method 3.
        assert_interval(wilson(81, 263), 0.2553, 0.3662);
        assert_interval(wilson(15, 148), 0.0624, 0.1605);
        assert_interval(wilson(0, 20), 0.0, 0.1611);
        assert_interval(wilson(1, 29), 0.0061, 0.1718);
    }

    #[test]
    fn student_equals_the_published_table() {
        let table = [
            (1.0, 12.706),
            (2.0, 4.303),
            (3.0, 3.182),
            (5.0, 2.571),
            (10.0, 2.228),
            (20.0, 2.086),
            (60.0, 2.000),
            (1e9, 1.960),
        ];
        for (df, expected) in table {
            assert!((student(df) / expected - 1.0).abs() < 2e-3, "{df}: {}", student(df));
        }
    }

    #[test]
    fn clusters_of_one_question_give_nearly_wilson() {
        let clusters: Vec<Cluster> =
            (0..400).map(|i| Cluster { n_right: u64::from(i % 5 > 0), n_questions: 1 }).collect();
        let (clustered, wilson) = (clustered(&clusters), wilson(320, 400));
        assert!((clustered.low - wilson.low).abs() < 1e-3, "{clustered:?} and {wilson:?}");
        assert!((clustered.high - wilson.high).abs() < 1e-3, "{clustered:?} and {wilson:?}");
    }

    #[test]
    fn questions_that_all_agree_count_as_one() {
        let clusters: Vec<Cluster> = (0..400)
            .map(|i| Cluster { n_right: 8 * u64::from(i % 5 > 0), n_questions: 8 })
            .collect();
        let (clustered, wilson) = (clustered(&clusters), wilson(320, 400));
        assert!((clustered.low - wilson.low).abs() < 1e-3, "{clustered:?} and {wilson:?}");
        assert!((clustered.high - wilson.high).abs() < 1e-3, "{clustered:?} and {wilson:?}");
    }

    #[test]
    fn all_wrong_and_all_right_are_mirrored_and_count_facts() {
        let none = clustered(&[Cluster { n_right: 0, n_questions: 8 }; 21]);
        assert!(none.low == 0.0 && none.high > wilson(0, 42).high, "{none:?}");
        assert!(none.high < wilson(0, 15).high, "{none:?}");
        let all = clustered(&[Cluster { n_right: 8, n_questions: 8 }; 21]);
        assert!(all.high == 1.0 && (all.low - (1.0 - none.high)).abs() < 1e-12, "{all:?}");
    }

    #[test]
    fn one_more_right_answer_hardly_lowers_the_interval() {
        // Right answers strewn over the facts speak for independence, so an end may move a little the other way.
        let mut clusters = [Cluster { n_right: 0, n_questions: 8 }; 21];
        let mut before = clustered(&clusters);
        for i in 0..clusters.len() * 8 {
            clusters[i / 8].n_right += 1;
            let after = clustered(&clusters);
            assert!(after.high > before.high - 0.02, "{i}: {before:?} {after:?}");
            assert!(after.low > before.low - 0.02, "{i}: {before:?} {after:?}");
            before = after;
        }
    }

    #[test]
    fn one_cluster_says_nothing() {
        assert_eq!(clustered(&[]), Interval::ALL);
        assert_eq!(clustered(&[Cluster { n_right: 3, n_questions: 8 }]), Interval::ALL);
    }

    /// Facts of which a share is known; of eight questions about a fact, 95 % or else `guessed` are answered rightly.
    fn draw_clusters(rng: &mut Rng, n_facts: usize, known: f64, guessed: f64) -> Vec<Cluster> {
        let draw = |_| {
            let p = if rng.uniform() < known { 0.95 } else { guessed };
            let n_right = (0..8).filter(|_| rng.uniform() < p).count() as u64;
            Cluster { n_right, n_questions: 8 }
        };
        (0..n_facts).map(draw).collect()
    }

    #[test]
    fn clustered_intervals_cover_the_truth_as_often_as_they_say() {
        let mut rng = Rng::new(11);
        for (n_facts, known) in [(252, 0.8), (252, 0.5), (40, 0.5), (21, 0.7)] {
            let truth = known * 0.95 + (1.0 - known) * 0.1;
            let n_runs = 4000;
            let (mut covered, mut covered_wilson) = (0, 0);
            for _ in 0..n_runs {
                let clusters = draw_clusters(&mut rng, n_facts, known, 0.1);
                covered += u32::from(clustered(&clusters).contains(truth));
                let n_right = clusters.iter().map(|cluster| cluster.n_right).sum();
                let plain = wilson(n_right, 8 * n_facts as u64);
                covered_wilson += u32::from(plain.contains(truth));
            }
            let share = |count| f64::from(count) / f64::from(n_runs);
            let (clustered, plain) = (share(covered), share(covered_wilson));
            assert!((0.93..=0.97).contains(&clustered), "{n_facts} facts: {clustered}");
            assert!(plain < 0.75, "{n_facts} facts: {plain} without clusters");
        }
    }

    #[test]
    fn clustered_intervals_hold_near_none_and_near_all() {
        let mut rng = Rng::new(13);
        for (n_facts, known, guessed) in
            [(21, 0.9, 0.02), (40, 0.97, 0.02), (40, 0.02, 0.005), (252, 0.02, 0.005)]
        {
            let truth = known * 0.95 + (1.0 - known) * guessed;
            let covers = |_: &u32| {
                clustered(&draw_clusters(&mut rng, n_facts, known, guessed)).contains(truth)
            };
            let share = (0..3000).filter(covers).count() as f64 / 3000.0;
            assert!((0.915..=0.99).contains(&share), "{n_facts} facts, {known} known: {share}");
        }
    }

    #[test]
    fn wilson_covers_the_truth_as_often_as_it_says() {
        let mut rng = Rng::new(12);
        for (n, p) in [(2016, 0.8), (168, 0.5), (320, 0.05)] {
            let covers = |_: &u32| {
                let n_right = (0..n).filter(|_| rng.uniform() < p).count() as u64;
                wilson(n_right, n).contains(p)
            };
            let share = (0..3000).filter(covers).count() as f64 / 3000.0;
            assert!((0.93..=0.97).contains(&share), "{n} at {p}: {share}");
        }
    }

    proptest! {
        #[test]
        fn intervals_hold_the_share_and_stay_within_bounds(
            sizes in proptest::collection::vec((0_u64..=9, 0_u64..=9), 0..40),
        ) {
            let cluster = |&(a, b): &(u64, u64)| Cluster { n_right: a.min(b), n_questions: a.max(b) };
            let clusters: Vec<Cluster> = sizes.iter().map(cluster).collect();
            let n_right: u64 = clusters.iter().map(|cluster| cluster.n_right).sum();
            let n: u64 = clusters.iter().map(|cluster| cluster.n_questions).sum();
            let share = if n == 0 { 0.5 } else { n_right as f64 / n as f64 };
            for interval in [clustered(&clusters), wilson(n_right, n)] {
                prop_assert!(0.0 <= interval.low && interval.high <= 1.0);
                prop_assert!(interval.contains(share), "{:?} without {}", interval, share);
            }
        }
    }
}
