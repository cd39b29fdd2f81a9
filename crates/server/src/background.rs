//! Work that takes longer than the event loop may.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::failure::Failure;

/// Runs work on a thread for blocking work. It goes on when the caller is gone.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Failure::Engine(engine::EngineError::Stopped)),
        },
    }
}

/// The same, as much at a time as there are places. A caller that goes away while it waits leaves its place.
pub(crate) async fn run_in_turn<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("nobody closes the semaphore");
    let work = move || {
        // Kept to the end of the work.
        let _place = place;
        work()
    };
    run(work).await
}
