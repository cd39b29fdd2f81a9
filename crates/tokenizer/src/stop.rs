//! Stop strings of a text: found wherever the tokens cut them, never shown, not even in part.

/// What a piece of text became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Text that can be shown.
    pub(crate) safe: String,
    /// Whether a stop string was completed; nothing after it is text.
    pub(crate) stopped: bool,
}

/// Scans a growing text for stop strings. Of several, the one that is complete first counts, of these the longest; so the
/// result does not depend on how the text is cut. Memory is bounded by the longest stop string.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopScanner {
    stops: Vec<String>,
    /// The end of the text, as far as it may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl StopScanner {
    /// A scanner that has seen no text.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    /// Adds text and says what of it can be shown.
    pub(crate) fn push(&mut self, text: &str) -> Scanned {
        if self.stopped {
            return Scanned { safe: String::new(), stopped: true };
        }
        if self.stops.is_empty() {
            return Scanned { safe: text.to_owned(), stopped: false };
        }
        let n_held = self.held.len();
        self.held.push_str(text);
        if let Some(start) = self.first_complete(n_held) {
            self.stopped = true;
            let mut safe = std::mem::take(&mut self.held);
            safe.truncate(start);
            return Scanned { safe, stopped: true };
        }
        let kept = self.held.split_off(self.held.len() - self.n_possible_start());
        Scanned { safe: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// Whether there is nothing to look for.
    pub(crate) fn is_idle(&self) -> bool {
        self.stops.is_empty()
    }

    /// Whether text is kept back.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Ends the text: what was kept back was no stop string after all.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start of the stop string that ends first, searching ends after byte `n_known`.
    fn first_complete(&self, n_known: usize) -> Option<usize> {
        let ends = self.stops.iter().filter_map(|stop| {
            // A stop string that ended within the known text would have been found before.
            let mut from = (n_known + 1).saturating_sub(stop.len());
            while !self.held.is_char_boundary(from) {
                from -= 1;
            }
            let start = from + self.held[from..].find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        ends.min().map(|(_, start)| start)
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn n_possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let starts = (from..self.held.len()).filter(|&i| self.held.is_char_boundary(i));
        let possible = |&i: &usize| {
            let tail = &self.held[i..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        starts.into_iter().find(possible).map_or(0, |i| self.held.len() - i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut text = String::new();
        let mut stopped = false;
        for piece in pieces {
            let scanned = scanner.push(piece);
            text.push_str(&scanned.safe);
            stopped = scanned.stopped;
        }
        if !stopped {
            text.push_str(&scanner.finish());
        }
        (text, stopped)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_not_shown() {
        assert_eq!(scan(&["\nUser:"], &["Bon", "jour\nUs", "er", ": x"]), ("Bonjour".into(), true));
        assert_eq!(scan(&["\nUser:"], &["Bonjour\nUs"]), ("Bonjour\nUs".into(), false));
    }

    #[test]
    fn text_that_may_begin_a_stop_string_is_kept_back() {
        let mut scanner = StopScanner::new(vec!["aab".to_owned()]);
        assert_eq!(scanner.push("xaaa"), Scanned { safe: "xa".into(), stopped: false });
        assert!(scanner.is_holding());
        assert_eq!(scanner.push("c"), Scanned { safe: "aac".into(), stopped: false });
        assert!(!scanner.is_holding());
    }

    #[test]
    fn any_cut_gives_the_same_text() {
        let stop_sets: [&[&str]; 5] =
            [&["abcd", "c"], &["aa"], &["é!", "!!"], &["ba", "aba"], &["zzz"]];
        for text in ["xxabcdyy", "éé!a!!b", "abababa", "caab", "aaaa"] {
            for stops in stop_sets {
                let characters: Vec<String> = text.chars().map(String::from).collect();
                let pieces: Vec<&str> = characters.iter().map(String::as_str).collect();
                let expected = scan(stops, &pieces);
                assert_eq!(scan(stops, &[text]), expected, "{text} {stops:?}");
                for (cut, _) in text.char_indices() {
                    let (left, right) = text.split_at(cut);
                    assert_eq!(scan(stops, &[left, right]), expected, "{text} {stops:?} {cut}");
                }
            }
        }
    }
}
