//! Masks: what may come next is told by the caller.

use super::*;

/// Allows the tokens whose rest by `modulus` is the number of tokens so far by `modulus`.
struct Turns {
    n_tokens: u32,
    modulus: u32,
}

fn turns(modulus: u32) -> Option<Box<dyn TokenMask>> {
    Some(Box::new(Turns { n_tokens: 0, modulus }))
}

impl TokenMask for Turns {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        let turn = self.n_tokens % self.modulus;
        (0..32).filter(|id| id % self.modulus == turn).for_each(|id| allowed.insert(id));
        Ok(())
    }

    fn push(&mut self, token_id: u32) -> Result<(), String> {
        assert_eq!(token_id % self.modulus, self.n_tokens % self.modulus, "a token out of turn");
        self.n_tokens += 1;
        Ok(())
    }
}

#[test]
fn masked_requests_say_alone_and_among_others_the_same_allowed_tokens() {
    let decoder = Arc::new(decoder());
    let masked = |sampling, modulus| GenerationRequest {
        mask: turns(modulus),
        ..request(vec![1, 2, 3], 90, sampling)
    };
    for sampling in [Sampling::GREEDY, sampled(11)] {
        let alone = |modulus| {
            let speculation = Speculation::Off;
            let limits = EngineLimits { speculation, ..EngineLimits::default() };
            let engine = Engine::start(Arc::clone(&decoder), device(), limits).unwrap();
            drain_bits(engine.submit(masked(sampling.clone(), modulus)).unwrap())
        };
        let expected = [alone(2), alone(16)];
        for (expected, modulus) in expected.iter().zip([2, 16]) {
            let mut turn = (0..modulus).cycle();
            assert!(expected.iter().all(|&(id, _)| id % modulus == turn.next().unwrap()));
        }
        let limits = EngineLimits { speculation: Speculation::Always, ..EngineLimits::default() };
        let engine = Engine::start(Arc::clone(&decoder), device(), limits).unwrap();
        let others: Vec<EventReceiver> = random_prompts(6)
            .into_iter()
            .map(|prompt| engine.submit(request(prompt, 25, sampled(3))).unwrap())
            .collect();
        let among =
            [2, 16].map(|modulus| engine.submit(masked(sampling.clone(), modulus)).unwrap());
        assert_eq!(among.map(drain_bits), expected);
        drop(others);
    }
}

type Telling = fn(&mut TokenSet) -> Result<(), String>;

/// Answers as told.
struct Told(Telling);

impl TokenMask for Told {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        (self.0)(allowed)
    }

    fn push(&mut self, token_id: u32) -> Result<(), String> {
        if token_id == 9 { Err("nine is refused".to_owned()) } else { Ok(()) }
    }
}

#[test]
fn a_mask_that_fails_ends_its_own_request_only() {
    let engine = Engine::start(Arc::new(decoder()), device(), EngineLimits::default()).unwrap();
    let told: [(Telling, &str); 4] = [
        (|_| Ok(()), "no token may come next"),
        (|_| Err("too deep".to_owned()), "too deep"),
        (|_| panic!("on purpose"), "it panicked: on purpose"),
        (
            |allowed| {
                allowed.insert(9);
                Ok(())
            },
            "nine is refused",
        ),
    ];
    let other = engine.submit(greedy(&[1, 2, 3], 60)).unwrap();
    for (answer, reason) in told {
        let mask: Option<Box<dyn TokenMask>> = Some(Box::new(Told(answer)));
        let failing = engine.submit(GenerationRequest { mask, ..greedy(&[1, 2], 5) }).unwrap();
        let (token_ids, last) = drain(failing);
        assert!(token_ids.is_empty());
        let Event::Failed(error) = last else { panic!("{last:?}") };
        assert_eq!(error.to_string(), format!("the token mask of the request failed: {reason}"));
    }
    assert_eq!(drain(other).0.len(), 60);
}

#[test]
fn masks_are_prepared_beside_the_model() {
    let stepped = Stepped::start(one_at_a_time());
    let mask: Option<Box<dyn TokenMask>> = Some(Box::new(Told(|allowed| {
        assert_eq!(std::thread::current().name(), Some("masks"));
        allowed.insert(5);
        Ok(())
    })));
    let events = stepped.engine.submit(GenerationRequest { mask, ..greedy(&[1], 3) }).unwrap();
    assert_eq!([stepped.step(), stepped.step(), stepped.step()], [[[1]], [[5]], [[5]]]);
    assert_eq!(drain(events).0, [5; 3]);
}
