//! Draft tokens: guesses of what comes next, read from what was there before or said by a draft model ([`crate::draft_model`]), and
//! whether they are worth their rows.
//!
//! Text repeats itself: where the last few tokens stood before, what followed them then may follow now. A guess is one more row of
//! the step that draws the token before it. Each token is drawn from the model's own logits as without guesses, and a guess is accepted
//! if it is the token that was drawn; so guesses change when a token is there, never which.

/// Guessed tokens at a time, of one sequence.
pub(crate) const MAX_DRAFT: usize = 8;

/// Rows of guesses in one step, of all sequences.
pub(crate) const MAX_DRAFT_ROWS: usize = 16;

/// Tokens that must have stood before for what followed them to be a guess; more make it no better.
const MIN_MATCH: usize = 3;
const MAX_MATCH: usize = 16;

/// Share of guesses that come true, before any is known.
pub(crate) const ASSUMED_RATE: f32 = 0.5;

/// Weight of the newest guess in the share of guesses that come true.
const NEWEST: f32 = 1.0 / 16.0;

/// What one source guesses of a sequence, and how often that came true.
#[derive(Debug)]
struct DraftSource {
    /// What comes after the tokens that are known; the first is the next.
    draft: Vec<u32>,
    acceptance_rate: f32,
}

impl DraftSource {
    fn new(acceptance_rate: f32) -> Self {
        Self { draft: Vec::with_capacity(MAX_DRAFT), acceptance_rate }
    }

    fn observe(&mut self, token_id: u32) {
        let Some(&guess) = self.draft.first() else { return };
        let is_hit = guess == token_id;
        self.acceptance_rate += NEWEST * (f32::from(u8::from(is_hit)) - self.acceptance_rate);
        if is_hit {
            self.draft.remove(0);
        } else {
            self.draft.clear();
        }
    }
}

/// What one sequence is guessed to say.
#[derive(Debug)]
pub(crate) struct Drafter {
    /// What followed when the last few tokens stood before.
    lookup: DraftSource,
    /// What a draft model says.
    model: DraftSource,
}

impl Drafter {
    /// `model_rate` is how often guesses of the draft model come true, before it is known of this sequence.
    pub(crate) fn new(model_rate: f32) -> Self {
        Self { lookup: DraftSource::new(ASSUMED_RATE), model: DraftSource::new(model_rate) }
    }

    /// Whether a guess of the draft model would be taken.
    fn prefers_model(&self) -> bool {
        self.lookup.draft.is_empty() || self.model.acceptance_rate > self.lookup.acceptance_rate
    }

    /// The source that does better, of those that guess.
    fn best(&self) -> &DraftSource {
        let has_model_draft = !self.model.draft.is_empty();
        if has_model_draft && self.prefers_model() { &self.model } else { &self.lookup }
    }

    /// What is guessed to come after the known tokens, the next first. It stands until it fails or is used up.
    pub(crate) fn draft(&self) -> &[u32] {
        &self.best().draft
    }

    /// Chance that the first `n` guesses come true.
    pub(crate) fn chance(&self, n: usize) -> f32 {
        self.best().acceptance_rate.powi(i32::try_from(n).unwrap_or(i32::MAX))
    }

    /// Compares the token that came with the guesses, whether or not they were given a row.
    pub(crate) fn observe(&mut self, token_id: u32) {
        self.lookup.observe(token_id);
        self.model.observe(token_id);
    }

    /// Looks up anew where no such guess stands.
    pub(crate) fn look_up(&mut self, token_ids: &[u32]) {
        if self.lookup.draft.is_empty()
            && let Some(after) = after_longest_match(token_ids)
        {
            let period = token_ids.len() - after;
            // What ends with itself goes round and round.
            let guesses = (0..MAX_DRAFT).map(|i| token_ids[after + i % period]);
            self.lookup.draft.extend(guesses);
        }
    }

    /// How often guesses of a draft model come true, if one should be asked: no guess of it stands, and none of the other kind that does as
    /// well.
    pub(crate) fn wanted_model_rate(&self) -> Option<f32> {
        let is_wanted = self.model.draft.is_empty() && self.prefers_model();
        is_wanted.then_some(self.model.acceptance_rate)
    }

    /// Takes what a draft model guesses.
    pub(crate) fn set_model_draft(&mut self, token_ids: &[u32]) {
        self.model.draft.clear();
        self.model.draft.extend_from_slice(token_ids);
    }
}

/// Where the tokens begin that followed the last few tokens when these stood before: the longest such match, of equals the latest.
///
/// O(tokens), a comparison of three numbers for most.
fn after_longest_match(token_ids: &[u32]) -> Option<usize> {
    let n = token_ids.len();
    let last = &token_ids[n.checked_sub(MIN_MATCH)?..];
    let mut best = (MIN_MATCH - 1, None);
    for end in (MIN_MATCH..n).rev() {
        if token_ids[end - MIN_MATCH..end] != *last {
            continue;
        }
        let pairs = token_ids[..end].iter().rev().zip(token_ids.iter().rev());
        let n_common = pairs.take(MAX_MATCH).take_while(|(a, b)| a == b).count();
        if n_common > best.0 {
            best = (n_common, Some(end));
        }
        if n_common == MAX_MATCH {
            break;
        }
    }
    best.1
}

/// What a row costs beside others, learnt from how long steps take.
#[derive(Debug, Default)]
pub(crate) struct RowCost {
    /// Sums over steps of 1, rows, seconds, rows^2, rows * seconds; what is old weighs little.
    sums: [f64; 5],
}

impl RowCost {
    /// Before anything is known: about what it is for a model whose weights come from memory.
    const ASSUMED: f32 = 0.1;
    /// What an older step weighs of a newer one.
    const FADING: f64 = 0.98;

    /// Notes a step of `n_rows` rows, one of each sequence or a guess.
    pub(crate) fn observe(&mut self, n_rows: usize, seconds: f64) {
        let n = n_rows as f64;
        let terms = [1.0, n, seconds, n * n, n * seconds];
        for (sum, term) in self.sums.iter_mut().zip(terms) {
            *sum = *sum * Self::FADING + term;
        }
    }

    /// Seconds of a step of one row; `None` before any is known.
    pub(crate) fn seconds_of_first(&self) -> Option<f64> {
        let [weight, rows, seconds, ..] = self.sums;
        // As many rows as there are on average, each beyond the first at its cost.
        let cost = 1.0 + f64::from(self.of_one_more()) * (rows / weight - 1.0);
        (weight > 0.0).then(|| seconds / weight / cost)
    }

    /// Cost of one more row, the first row being 1: the slope of the line of least squares through rows and seconds.
    pub(crate) fn of_one_more(&self) -> f32 {
        let [weight, rows, seconds, squares, products] = self.sums;
        let variance = squares * weight - rows * rows;
        // Steps that hardly differ in rows tell nothing.
        if weight < 4.0 || variance < 0.05 * weight * weight {
            return Self::ASSUMED;
        }
        let slope = (products * weight - rows * seconds) / variance;
        let first = (seconds - slope * rows) / weight + slope;
        if first > 0.0 { (slope / first).clamp(0.02, 1.0) as f32 } else { 1.0 }
    }
}

/// How many guesses of each sequence get a row, so that a step yields most tokens for its cost; `drafters` are of the sequences that
/// are to draw their next token, with the most rows that each can use, `n_rows` the rows of the step without guesses.
pub(crate) fn choose<'a>(
    drafters: impl Iterator<Item = (&'a Drafter, usize)>,
    n_rows: usize,
    most_rows: usize,
    cost_of_row: f32,
) -> Vec<usize> {
    let drafters: Vec<(&Drafter, usize)> = drafters.collect();
    let mut chosen = vec![0; drafters.len()];
    let mut tokens = drafters.len() as f32;
    let mut cost = 1.0 + cost_of_row * n_rows.saturating_sub(1) as f32;
    for _ in 0..most_rows.min(MAX_DRAFT_ROWS) {
        let chance_of_next = |idx: usize| {
            let (drafter, most) = drafters[idx];
            let n = chosen[idx] + 1;
            if n <= most.min(drafter.draft().len()) { drafter.chance(n) } else { 0.0 }
        };
        let chances = (0..drafters.len()).map(|idx| (chance_of_next(idx), idx));
        let Some((chance, idx)) = chances.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
        else {
            break;
        };
        // A row that yields less for its cost than the step so far makes the whole slower.
        if chance <= 0.0 || chance * cost <= tokens * cost_of_row {
            break;
        }
        chosen[idx] += 1;
        tokens += chance;
        cost += cost_of_row;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafter(draft: &[u32], acceptance_rate: f32) -> Drafter {
        let lookup = DraftSource { draft: draft.to_vec(), acceptance_rate };
        Drafter { lookup, model: DraftSource::new(ASSUMED_RATE) }
    }

    #[test]
    fn the_guess_is_what_followed_the_longest_match() {
        let guess = |token_ids: &[u32]| {
            let mut drafter = Drafter::new(ASSUMED_RATE);
            drafter.look_up(token_ids);
            drafter.lookup.draft
        };
        assert!(guess(&[]).is_empty() && guess(&[1, 2]).is_empty());
        assert!(guess(&[1, 2, 3, 4, 5, 6]).is_empty(), "nothing stood before");
        assert_eq!(
            guess(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3]),
            [4, 5, 6, 7, 8, 9, 10, 11]
        );
        // `2 3 4` stood twice; the one after `1` matches longer, though it is older.
        let longest = guess(&[1, 2, 3, 4, 20, 0, 2, 3, 4, 30, 1, 2, 3, 4]);
        assert_eq!(longest[..3], [20, 0, 2]);
        // Of equal matches the latest.
        assert_eq!(guess(&[2, 3, 4, 20, 0, 2, 3, 4, 30, 9, 2, 3, 4])[..2], [30, 9]);
        assert_eq!(guess(&[5, 7, 7, 7, 7]), [7; MAX_DRAFT]);
        assert_eq!(guess(&[1, 2, 1, 2, 1, 2]), [1, 2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn a_guess_stands_until_it_fails_and_its_fate_is_counted() {
        let mut drafter = drafter(&[4, 5, 6], 0.5);
        drafter.observe(4);
        assert_eq!(drafter.draft(), [5, 6]);
        assert!(drafter.lookup.acceptance_rate > 0.5);
        drafter.look_up(&[1, 1, 1, 1]);
        assert_eq!(drafter.draft(), [5, 6]);
        drafter.observe(9);
        assert!(drafter.draft().is_empty() && drafter.lookup.acceptance_rate < 0.5);
        let rate = drafter.lookup.acceptance_rate;
        drafter.observe(9);
        assert_eq!(drafter.lookup.acceptance_rate, rate, "no guess, no fate");
    }

    #[test]
    fn the_source_that_does_better_is_taken_and_both_are_counted() {
        let mut drafter = drafter(&[4, 5], 0.5);
        assert_eq!(drafter.wanted_model_rate(), None, "what is looked up does as well");
        drafter.lookup.acceptance_rate = 0.4;
        assert_eq!(drafter.wanted_model_rate(), Some(0.5));
        drafter.set_model_draft(&[4, 9, 9]);
        assert_eq!((drafter.draft(), drafter.chance(2)), (&[4, 9, 9][..], 0.25));
        assert_eq!(drafter.wanted_model_rate(), None, "its guess stands");
        drafter.observe(4);
        drafter.observe(5);
        // The one was right twice and is used up, the other once.
        assert!(drafter.lookup.acceptance_rate > 0.4 && drafter.lookup.draft.is_empty());
        assert!(drafter.draft().is_empty() && drafter.model.acceptance_rate < 0.53);
        drafter.set_model_draft(&[7]);
        assert_eq!(drafter.draft(), [7]);
    }

    #[test]
    fn the_cost_of_a_row_is_learnt() {
        let mut cost = RowCost::default();
        assert_eq!(cost.of_one_more(), RowCost::ASSUMED);
        for _ in 0..50 {
            cost.observe(1, 0.030);
        }
        assert_eq!(cost.of_one_more(), RowCost::ASSUMED, "one number of rows says nothing");
        for _ in 0..20 {
            cost.observe(1, 0.030);
            cost.observe(5, 0.042);
        }
        assert!((cost.of_one_more() - 0.1).abs() < 0.01, "{}", cost.of_one_more());
        let first = cost.seconds_of_first().unwrap();
        assert!((first - 0.030).abs() < 0.001, "{first}");
        for _ in 0..300 {
            cost.observe(1, 0.010);
            cost.observe(3, 0.028);
        }
        assert!((cost.of_one_more() - 0.9).abs() < 0.05, "{}", cost.of_one_more());
    }

    #[test]
    fn rows_go_to_guesses_that_pay() {
        let choose_of = |drafters: &[(Drafter, usize)], most_rows, cost| {
            let n = drafters.len();
            choose(drafters.iter().map(|(drafter, most)| (drafter, *most)), n, most_rows, cost)
        };
        let good = || drafter(&[1; 8], 0.95);
        let bad = || drafter(&[1; 8], 0.05);
        assert_eq!(choose_of(&[(good(), 8)], 16, 0.1), [8]);
        assert_eq!(choose_of(&[(good(), 3)], 16, 0.1), [3], "no more than there is use for");
        assert_eq!(choose_of(&[(good(), 8)], 2, 0.1), [2], "no more than there is room for");
        assert_eq!(choose_of(&[(bad(), 8)], 16, 0.1), [0], "a row costs more than it yields");
        assert_eq!(
            choose_of(&[(good(), 8)], 16, 1.0),
            [0],
            "nor does it where all rows cost the same"
        );
        assert_eq!(
            choose_of(&[(bad(), 8), (drafter(&[], 0.95), 8), (good(), 8)], 16, 0.1)[..2],
            [0, 0]
        );
        // Two that are as good share.
        assert_eq!(choose_of(&[(good(), 8), (good(), 8)], 6, 0.1), [3, 3]);
    }
}
