//! The thread on which a template is compiled and runs.
//!
//! Its stack is as large as the deepest program of that length needs, so that no template ends the process: the parser
//! of the engine recurses over some forms without a bound. Memory of a stack is taken when it is first used.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use minijinja::machinery::{self, CodeGenerator, Instructions};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Value};

use super::guard::guard;
use super::marks::Marks;
use super::{failed, python};
use crate::error::Error;

/// Stack for each byte of the source, and for running. The deepest chains take a byte for each level (`{{ ---1 }}`, `{% set (((a`):
/// `the_longest_chains_are_refused` walks them at the largest size, for which 64 MiB suffice with and without optimisation of
/// this crate; running takes less than 1 MiB.
const STACK_PER_BYTE: usize = 2048;
const BASE_STACK: usize = 16 << 20;
/// Conversations that wait for the thread; whoever brings one more waits for a place.
const MAX_WAITING: usize = 64;
/// How long a rendering may take; fuel stops most before.
const MAX_TIME: Duration = Duration::from_secs(20);
/// Name of the program in messages of the engine.
const NAME: &str = "chat_template";

/// A compiled template, on a thread of its own that ends with it.
pub(super) struct Worker {
    requests: SyncSender<Request>,
    /// Characters of the template that must not become marks.
    pub(super) reserved: HashSet<char>,
}

struct Request {
    marks: Arc<Marks>,
    variables: Value,
    answer: SyncSender<Result<String, Error>>,
}

impl Worker {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Jinja`] when it is not Jinja, or the system refuses the thread.
    pub(super) fn start(source: String) -> Result<Worker, Error> {
        let reserved = Marks::reserved(&source);
        let (requests, inbox) = sync_channel(MAX_WAITING);
        let (ready, started) = sync_channel(1);
        let builder = thread::Builder::new()
            .name("chat-template".to_string())
            .stack_size(BASE_STACK + STACK_PER_BYTE * source.len());
        let run = move || serve(&source, &ready, &inbox);
        builder.spawn(run).map_err(|error| ended(&format!("cannot start a thread: {error}")))?;
        started.recv().map_err(|_| ended("compiling it failed"))??;
        Ok(Worker { requests, reserved })
    }

    /// Renders with these variables; the text holds the marks of content.
    ///
    /// # Errors
    /// [`Error::Jinja`].
    pub(super) fn render(&self, marks: Arc<Marks>, variables: Value) -> Result<String, Error> {
        let (answer, rendered) = sync_channel(1);
        let request = Request { marks, variables, answer };
        self.requests.send(request).map_err(|_| ended("its thread has ended"))?;
        rendered.recv().map_err(|_| ended("its thread has ended"))?
    }
}

fn ended(problem: &str) -> Error {
    Error::Jinja { line: None, problem: problem.to_string() }
}

fn serve(source: &str, ready: &SyncSender<Result<(), Error>>, inbox: &Receiver<Request>) {
    let compiled = compile(source);
    let is_compiled = compiled.as_ref().map(|_| ()).map_err(|error| failed(error, None));
    let (Ok(()), Ok(program)) = (ready.send(is_compiled), compiled) else { return };
    for Request { marks, variables, answer } in inbox {
        let run = AssertUnwindSafe(|| render(&program, &marks, variables));
        let rendered = catch_unwind(run).unwrap_or_else(|_| Err(ended("the engine failed")));
        // Nobody waits any more for an answer that cannot be sent.
        let _sent = answer.send(rendered);
    }
}

fn compile(source: &str) -> Result<Instructions<'_>, minijinja::Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.expect("the usual signs are valid");
    let template = guard(&machinery::parse(source, NAME, syntax)?)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&template);
    Ok(generator.finish().0)
}

fn render(
    program: &Instructions<'_>,
    marks: &Arc<Marks>,
    variables: Value,
) -> Result<String, Error> {
    let environment = python::environment(marks, Instant::now() + MAX_TIME);
    let blocks = Default::default();
    let mut text = String::new();
    let mut output = machinery::make_string_output(&mut text);
    let run =
        machinery::eval(&environment, program, variables, &blocks, &mut output, AutoEscape::None);
    run.map(|_| ()).map_err(|error| failed(&error, Some(marks.as_ref())))?;
    Ok(text)
}
