//! Guesses change when a token is there, never which.

use super::*;

fn always() -> EngineLimits {
    EngineLimits { speculation: Speculation::Always, ..one_at_a_time() }
}

#[test]
fn guesses_are_rows_of_the_step_before_and_come_true_together() {
    // The model of `Stepped` says 7 and nothing else.
    let stepped = Stepped::start(always());
    let events = stepped.engine.submit(greedy(&[7, 7, 7, 7], 12)).unwrap();
    assert_eq!(stepped.step(), [vec![7; 4]]);
    // Eight were guessed, of which the first came in the step before.
    assert_eq!(stepped.step(), [vec![7; 8]]);
    // Three are left, of which the last needs no row.
    assert_eq!(stepped.step(), [vec![7; 3]]);
    let (token_ids, last) = drain(events);
    assert_eq!(token_ids, [7; 12]);
    assert!(matches!(last, Event::Finished { n_generated: 12, .. }), "{last:?}");
    // When another has ended, what the first did has been counted.
    drop(stepped.go);
    drain(stepped.engine.submit(greedy(&[1], 1)).unwrap());
    let load = stepped.engine.load();
    assert_eq!((load.n_draft_tokens, load.n_accepted_tokens), (9, 9));
}

#[test]
fn what_fails_is_computed_again_in_its_place() {
    let stepped = Stepped::start(always());
    // After `1 2 3` came 4: the guess; the model says 7.
    let events = stepped.engine.submit(greedy(&[1, 2, 3, 4, 5, 1, 2, 7], 6)).unwrap();
    assert_eq!(stepped.step(), [vec![1, 2, 3, 4, 5, 1, 2, 7]]);
    assert_eq!(stepped.step(), [[7]], "nothing stood before `2 7 7`");
    assert_eq!(stepped.step(), [[7]], "nor before `7 7 7`");
    assert_eq!(stepped.step(), [vec![7; 3]], "what is beyond the end is not guessed");
    assert_eq!(drain(events).0, [7; 6]);
    let wrong = [1, 2, 7, 4, 5, 6, 1, 2];
    let events = stepped.engine.submit(greedy(&wrong, 20)).unwrap();
    assert_eq!(stepped.step(), [wrong]);
    assert_eq!(stepped.step(), [[7, 4, 5, 6, 1, 2, 7, 4, 5]]);
    assert_eq!(
        stepped.step(),
        [[7]],
        "after the first guess failed, from the token that came instead"
    );
    drop(stepped.go);
    assert_eq!(drain(events).0, [7; 20]);
}

#[test]
fn a_stop_within_guesses_ends_the_answer_there() {
    use StopDecision::{Continue, HoldBack, Stop};
    let stepped = Stepped::start(always());
    let stop = Box::new(Scripted(vec![Continue, HoldBack, Continue, Stop]));
    let request = GenerationRequest { stop, ..greedy(&[7; 5], 30) };
    let events = stepped.engine.submit(request).unwrap();
    assert_eq!(stepped.step(), [vec![7; 5]]);
    assert_eq!(stepped.step(), [vec![7; 8]]);
    let (token_ids, last) = drain(events);
    assert_eq!(token_ids, [7; 4]);
    assert!(matches!(last, Event::Finished { reason: FinishReason::Stop, n_generated: 4, .. }));
}

/// Says stop after so many tokens, which the engine does not know before.
struct StopAfter(usize);

impl StopMatcher for StopAfter {
    fn push(&mut self, _token_id: u32) -> StopDecision {
        self.0 -= 1;
        if self.0 == 0 { StopDecision::Stop } else { StopDecision::Continue }
    }
}

struct Any;

impl TokenMask for Any {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        (0..32).for_each(|id| allowed.insert(id));
        Ok(())
    }

    fn push(&mut self, _token_id: u32) -> Result<(), String> {
        Ok(())
    }
}

/// Five blocks, of which the first request has three and is full, and the second one. In one step the guesses of the first would need the
/// last block, and the second needs it for its token.
#[test]
fn guesses_take_no_block_from_another() {
    let limits = EngineLimits { max_running: 2, ..always() };
    let stepped = Stepped::start(room_for(160, limits));
    let stop = Box::new(StopAfter(37));
    let first = GenerationRequest { stop, ..greedy(&[7; 60], 100) };
    let first = stepped.engine.submit(first).unwrap();
    stepped.steps.recv().unwrap();
    // What is masked is not guessed: one token a step.
    let mask: Option<Box<dyn TokenMask>> = Some(Box::new(Any));
    let second = GenerationRequest { mask, ..greedy(&[5; 29], 40) };
    let second = stepped.engine.submit(second).unwrap();
    stepped.go.send(0.0).unwrap();
    let rows: Vec<[usize; 2]> =
        (0..5).map(|_| stepped.step()).map(|rows| [rows[0].len(), rows[1].len()]).collect();
    assert_eq!(rows, [[8, 29], [9, 1], [9, 1], [9, 1], [1, 1]]);
    drop(stepped.go);
    assert_eq!(drain(first).0, [7; 37]);
    assert_eq!(drain(second).0, [7; 40]);
    assert_eq!(stepped.engine.load().n_preemptions, 0);
}

/// Tokens that a greedy request says with a draft model, and how many guesses were made and came true.
fn drafted(
    draft: Decoder,
    limits: EngineLimits,
    prompts: &[Vec<u32>],
) -> (Vec<Vec<u32>>, [u64; 2]) {
    let draft = Some(Arc::new(draft));
    let engine =
        Engine::start_with_draft_model(Arc::new(decoder()), draft, device(), limits).unwrap();
    let running: Vec<_> =
        prompts.iter().map(|prompt| engine.submit(greedy(prompt, 30)).unwrap()).collect();
    let said = running.into_iter().map(|events| drain(events).0).collect();
    let load = engine.load();
    (said, [load.n_draft_tokens, load.n_accepted_tokens])
}

#[test]
fn a_draft_model_changes_no_token_and_is_right_as_often_as_it_knows_better() {
    let (model, prompts) = (decoder(), random_prompts(10));
    let expected: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| plain_decoding(&model, CacheKind::Operands, prompt, 30))
        .collect();
    let limits = EngineLimits { speculation: Speculation::Always, ..EngineLimits::default() };
    let one = EngineLimits { max_running: 1, ..limits };
    // Alone, and more of them than a draft model follows.
    for limits in [one, limits] {
        let (said, [n_draft_tokens, n_accepted]) = drafted(decoder(), limits, &prompts);
        assert_eq!(said, expected);
        assert!(n_accepted > 0 && n_accepted <= n_draft_tokens);
        if limits == one {
            // Half of the tokens and more come as guesses, nearly all of which are right.
            assert!(
                n_accepted > 150 && n_accepted > n_draft_tokens * 3 / 4,
                "{n_accepted} of {n_draft_tokens}"
            );
        }
    }
    let (said, [n_draft_tokens, n_accepted]) = drafted(decoder_of(&config(), 4), one, &prompts);
    assert_eq!(said, expected);
    assert!(
        n_draft_tokens > 0 && n_accepted < n_draft_tokens / 4,
        "{n_accepted} of {n_draft_tokens}"
    );
}

/// It has fewer tokens than the model, and a shorter context, and reads prompts in pieces.
#[test]
fn a_draft_model_that_knows_less_changes_no_token() {
    let mut small = ModelConfig::example();
    (small.context_len, small.vocab_size) = (60, small.vocab_size - 4);
    let small = ModelConfig::new(small).unwrap();
    let model = decoder();
    let limits = EngineLimits { max_running: 1, step_tokens: 8, ..EngineLimits::default() };
    let limits = EngineLimits { speculation: Speculation::Always, ..limits };
    let prompts = random_prompts(4);
    let (said, _) = drafted(decoder_of(&small, 3), limits, &prompts);
    for (prompt, said) in prompts.iter().zip(said) {
        assert_eq!(said, plain_decoding(&model, CacheKind::Operands, prompt, 30));
    }
}
