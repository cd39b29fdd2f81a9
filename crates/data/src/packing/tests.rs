use super::*;
use crate::shard::TokenDocuments;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Documents of the given lengths; each token says its document and place.
fn numbered(lengths: &[usize]) -> Vec<Vec<u32>> {
    let document = |(idx, &n): (usize, &usize)| (0..n).map(|i| (idx * 1000 + i) as u32).collect();
    lengths.iter().enumerate().map(document).collect()
}

fn pretraining(lengths: &[usize], seq_len: usize, seed: u64) -> PretrainingRows {
    // Two sets, so that crossing from one to the other is tested too.
    let documents = numbered(lengths);
    let (first, second) = documents.split_at(lengths.len() / 2);
    let sets = vec![TokenDocuments::collect(first), TokenDocuments::collect(second)];
    PretrainingRows::new(sets, seq_len, seed).unwrap()
}

/// What must hold for any batch: lengths agree, segments tile the tokens, and each segment is a stretch of one document
/// whose targets are its next tokens.
fn check_batch(batch: &PackedBatch, lengths: &[usize]) {
    assert_eq!(batch.targets.len(), batch.n_tokens());
    assert_eq!(batch.target_weights.len(), batch.n_tokens());
    assert_eq!(batch.segment_starts[0], 0);
    assert_eq!(*batch.segment_starts.last().unwrap() as usize, batch.n_tokens());
    for bounds in batch.segment_starts.windows(2) {
        let (begin, end) = (bounds[0] as usize, bounds[1] as usize);
        assert!(begin < end, "segments have tokens");
        let document = batch.token_ids[begin] / 1000;
        let document_len = lengths[document as usize] as u32;
        for i in begin..end {
            let id = batch.token_ids[i];
            assert_eq!(
                id,
                batch.token_ids[begin] + (i - begin) as u32,
                "one stretch of one document"
            );
            let has_target = id % 1000 + 1 < document_len;
            let expected = if has_target { (id + 1, 1.0) } else { (0, 0.0) };
            assert_eq!((batch.targets[i], batch.target_weights[i]), expected, "token {id}");
        }
    }
}

fn count(ids: impl IntoIterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_token_is_lost_or_repeated(
        lengths in prop::collection::vec(0usize..20, 1..10),
        seq_len in 2usize..20,
        seed: u64,
    ) {
        prop_assume!(lengths.iter().any(|&len| len > 1));
        let rows = pretraining(&lengths, seq_len, seed);
        // After this many rows the stream is at an epoch border and at a block border.
        let n_rows = rows.rows_per_epoch() * rows.n_tokens();
        let mut ids = Vec::new();
        for row_idx in 0..n_rows {
            let row = rows.row(row_idx);
            prop_assert_eq!(row.n_tokens(), seq_len);
            check_batch(&row, &lengths);
            ids.extend(row.token_ids);
        }
        let n_epochs = rows.rows_per_epoch() as usize * seq_len;
        let expected = count(numbered(&lengths).concat()).into_iter().map(|(id, n)| (id, n * n_epochs));
        prop_assert_eq!(count(ids), expected.collect());
    }

    #[test]
    fn a_row_is_the_same_however_it_is_reached(
        lengths in prop::collection::vec(1usize..60, 1..30),
        seq_len in 2usize..40,
        seed: u64,
        first in 0u64..200,
        n_rows in 1usize..8,
    ) {
        prop_assume!(lengths.iter().any(|&len| len > 1));
        let rows = pretraining(&lengths, seq_len, seed);
        let batch = rows.batch(first, n_rows);
        check_batch(&batch, &lengths);
        let fresh = pretraining(&lengths, seq_len, seed);
        let mut token_ids = Vec::new();
        for row_idx in (first..first + n_rows as u64).rev() {
            let row = fresh.row(row_idx);
            token_ids = [row.token_ids, token_ids].concat();
        }
        prop_assert_eq!(&batch.token_ids, &token_ids);
        prop_assert_eq!(batch, rows.batch(first, n_rows));
    }
}

#[test]
fn the_first_epoch_sees_each_document_once() {
    let lengths = [7, 11, 2, 4];
    let rows = pretraining(&lengths, 4, 1);
    assert_eq!((rows.rows_per_epoch(), rows.n_tokens(), rows.n_documents()), (6, 24, 4));
    let batch = rows.batch(0, 6);
    assert_eq!(count(batch.token_ids.iter().copied()), count(numbered(&lengths).concat()));
    // One target for each token, but for the last of each document.
    assert_eq!(batch.n_trained_tokens(), 20);
    assert_ne!(rows.batch(6, 6).token_ids, batch.token_ids, "epochs have other orders");
    assert_ne!(pretraining(&lengths, 4, 2).batch(0, 6), batch, "seeds have other orders");
}

#[test]
fn each_epoch_has_an_order_of_its_own() {
    let lengths = [5; 20];
    let rows = pretraining(&lengths, 100, 1);
    let epochs: Vec<PackedBatch> = (0..10).map(|row_idx| rows.row(row_idx)).collect();
    for (i, epoch) in epochs.iter().enumerate() {
        assert_eq!(count(epoch.token_ids.iter().copied()), count(numbered(&lengths).concat()));
        assert!(!epochs[..i].contains(epoch), "epoch {i}");
    }
}

#[test]
fn rows_of_a_long_document_are_not_visited_in_its_order() {
    let rows = pretraining(&[500, 500], 10, 3);
    let n_followed = (0..99)
        .filter(|&row_idx| rows.row(row_idx + 1).token_ids[0] == rows.row(row_idx).token_ids[9] + 1)
        .count();
    assert!(
        n_followed < 10,
        "{n_followed} of 99 rows are followed by the next part of their document"
    );
}

#[test]
fn a_set_without_tokens_and_a_row_length_of_one_are_refused() {
    let empty = TokenDocuments::collect([vec![], vec![]]);
    let error = PretrainingRows::new(vec![empty], 8, 1).unwrap_err();
    assert!(matches!(error, crate::DataError::NothingToTrain { n_samples: 2, .. }), "{error}");
    for seq_len in [0, 1, usize::MAX] {
        let documents = TokenDocuments::collect([vec![1, 2, 3]]);
        let error = PretrainingRows::new(vec![documents], seq_len, 1).unwrap_err().to_string();
        assert!(error.contains("seq_len"), "{error}");
    }
}

/// Samples as [`numbered`], in which every third token is not trained.
fn samples(lengths: &[usize]) -> Vec<TrainingSample> {
    let sample = |token_ids: Vec<u32>| {
        let trained = token_ids.iter().map(|id| id % 3 != 0).collect();
        TrainingSample { token_ids, trained }
    };
    numbered(lengths).into_iter().map(sample).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn conversations_stay_whole_and_each_comes_once_per_epoch(
        lengths in prop::collection::vec(0usize..50, 1..120),
        seq_len in 2usize..45,
        seed: u64,
    ) {
        let all = samples(&lengths);
        let fits = |sample: &&TrainingSample| sample.token_ids.len() <= seq_len && sample.n_trained() > 0;
        prop_assume!(all.iter().any(|sample| fits(&sample)));
        let rows = ConversationRows::new(all.clone(), seq_len, seed).unwrap();
        prop_assert_eq!(rows.n_too_long(), lengths.iter().filter(|&&n| n > seq_len).count());
        prop_assert_eq!(rows.n_samples() + rows.n_too_long() + rows.n_untrained(), lengths.len());
        let expected = count(all.iter().filter(fits).flat_map(|sample| sample.token_ids.clone()));
        let expected_trained: u64 = all.iter().filter(fits).map(TrainingSample::n_trained).sum();
        for epoch in 0..3 {
            let (begin, end) = (rows.first_row_of(epoch), rows.first_row_of(epoch + 1));
            let mut ids = Vec::new();
            let mut n_trained = 0;
            for row_idx in begin..end {
                let row = rows.row(row_idx);
                prop_assert!(row.n_tokens() <= seq_len && row.n_tokens() > 0);
                for bounds in row.segment_starts.windows(2) {
                    let segment = &row.token_ids[bounds[0] as usize..bounds[1] as usize];
                    let document = segment[0] as usize / 1000;
                    prop_assert_eq!(segment, &all[document].token_ids[..], "whole conversations");
                }
                n_trained += row.n_trained_tokens();
                ids.extend(row.token_ids);
            }
            prop_assert_eq!(count(ids), expected.clone());
            prop_assert_eq!(n_trained, expected_trained);
        }
    }

    #[test]
    fn conversation_rows_are_the_same_however_they_are_reached(
        lengths in prop::collection::vec(2usize..30, 3..60),
        first in 0u64..100,
        n_rows in 1usize..6,
        seed: u64,
    ) {
        let rows = ConversationRows::new(samples(&lengths), 40, seed).unwrap();
        for row_idx in 0..first {
            let _ = rows.row(row_idx);
        }
        let fresh = ConversationRows::new(samples(&lengths), 40, seed).unwrap();
        let batch = fresh.batch(first, n_rows);
        prop_assert_eq!(&rows.batch(first, n_rows), &batch);
        let _ = fresh.row(first + 50);
        prop_assert_eq!(&fresh.batch(first, n_rows), &batch);
    }
}

#[test]
fn only_trained_tokens_are_targets() {
    let sample = TrainingSample {
        token_ids: vec![1, 10, 11, 12, 2],
        trained: vec![false, false, false, true, true],
    };
    let rows = ConversationRows::new(vec![sample], 8, 1).unwrap();
    let batch = rows.row(0);
    assert_eq!(batch.token_ids, [1, 10, 11, 12, 2]);
    assert_eq!(batch.targets, [0, 0, 12, 2, 0]);
    assert_eq!(batch.target_weights, [0.0, 0.0, 1.0, 1.0, 0.0]);
    assert_eq!(batch.segment_starts, [0, 5]);
    assert_eq!(batch.n_trained_tokens(), 2);
}

#[test]
fn rows_are_filled_well() {
    let lengths: Vec<usize> = (0..600).map(|i| 20 + i * 37 % 180).collect();
    let rows = ConversationRows::new(samples(&lengths), 512, 1).unwrap();
    let n_rows = rows.first_row_of(1);
    let n_tokens = rows.batch(0, n_rows as usize).n_tokens() as u64;
    assert_eq!(n_tokens, lengths.iter().sum::<usize>() as u64, "closed rows are kept");
    assert!(n_rows > 64, "rows are closed before the end");
    let filled = rows.n_tokens() as f64 / (n_rows * 512) as f64;
    assert!(filled > 0.93, "{filled}");
}

#[test]
fn a_document_among_conversations_is_trained_token_by_token_once() {
    for n in [0usize, 1, 2, 9, 10, 11, 19, 20, 28, 29, 100] {
        let token_ids: Vec<u32> = (0..n as u32).collect();
        let pieces = TrainingSample::from_document(&token_ids, 10);
        assert!(pieces.iter().all(|piece| piece.token_ids.len() <= 10));
        let trained = pieces.iter().flat_map(|piece| piece.token_ids[1..].to_vec());
        assert_eq!(trained.collect::<Vec<_>>(), (1..n as u32).collect::<Vec<_>>(), "{n}");
    }
}

#[test]
fn samples_that_cannot_be_trained_on_are_refused_or_counted() {
    let sample = |n: usize| TrainingSample { token_ids: vec![3; n], trained: vec![true; n] };
    let error = ConversationRows::new(vec![sample(9)], 8, 1).unwrap_err().to_string();
    assert!(error.contains("1 samples, 1 of them longer than 8 tokens"), "{error}");
    let uneven = TrainingSample { token_ids: vec![1, 2], trained: vec![true] };
    let error = ConversationRows::new(vec![sample(3), uneven], 8, 1).unwrap_err().to_string();
    assert!(error.contains("sample 1 has 2 tokens and 1 trained marks"), "{error}");
    let silent = TrainingSample { token_ids: vec![1, 2], trained: vec![true, false] };
    let rows = ConversationRows::new(vec![sample(3), silent, sample(1)], 8, 1).unwrap();
    assert_eq!((rows.n_samples(), rows.n_untrained()), (1, 2));
}

#[test]
fn rows_behind_more_epochs_than_can_be_planned_are_refused() {
    let few = ConversationRows::new(samples(&[5, 6]), 12, 1).unwrap();
    for near in [0, 1, 1 << 26] {
        few.check_reachable(near).unwrap();
    }
    let many = ConversationRows::new(samples(&[3; 1000]), 12, 1).unwrap();
    many.check_reachable(1 << 30).unwrap();
    for (rows, far) in [(&few, 1 << 27), (&few, u64::MAX), (&many, 1 << 32)] {
        let error = rows.check_reachable(far).unwrap_err().to_string();
        assert!(error.contains(&far.to_string()), "{error}");
    }
}
