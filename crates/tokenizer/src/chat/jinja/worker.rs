//! The thread on which a template is compiled and runs.
//!
//! Its stack is as large as the deepest program of that length needs, so that no template ends the process: the parser
//! of the engine recurses over some forms without a bound. Memory of a stack is taken when it is first used.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
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
/// How long whoever waits for a place sleeps before looking again.
const PAUSE: Duration = Duration::from_millis(1);
/// How long after its end a rendering is waited for: the thread says at which line it was.
const GRACE: Duration = Duration::from_secs(1);
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
    end: Instant,
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

    /// Renders with these variables until a given time, waiting included; the text holds the marks of content.
    ///
    /// The thread looks at the time between its steps, so it ends a rendering soon after its end, and refuses those
    /// that have waited too long. Nobody waits for a step that does not end: the rendering is given up [`GRACE`] after its end.
    ///
    /// # Errors
    /// [`Error::Jinja`].
    pub(super) fn render(
        &self,
        marks: Arc<Marks>,
        variables: Value,
        end: Instant,
    ) -> Result<String, Error> {
        let (answer, rendered) = sync_channel(1);
        let mut request = Request { marks, variables, end, answer };
        loop {
            request = match self.requests.try_send(request) {
                Ok(()) => break,
                Err(TrySendError::Full(request)) if Instant::now() < end => request,
                Err(TrySendError::Full(_)) => return Err(ended("too many conversations wait")),
                Err(TrySendError::Disconnected(_)) => return Err(ended("its thread has ended")),
            };
            thread::sleep(PAUSE);
        }
        match rendered.recv_timeout(end.saturating_duration_since(Instant::now()) + GRACE) {
            Ok(rendered) => rendered,
            Err(RecvTimeoutError::Timeout) => Err(timed_out()),
            Err(RecvTimeoutError::Disconnected) => Err(ended("its thread has ended")),
        }
    }
}

fn ended(problem: &str) -> Error {
    Error::Jinja { line: None, problem: problem.to_string() }
}

/// Of a rendering that is not done at its end.
pub(super) fn timed_out() -> Error {
    ended("rendering takes too long")
}

fn serve(source: &str, ready: &SyncSender<Result<(), Error>>, inbox: &Receiver<Request>) {
    let compiled = compile(source);
    let is_compiled = compiled.as_ref().map(|_| ()).map_err(|error| failed(error, None));
    let (Ok(()), Ok(program)) = (ready.send(is_compiled), compiled) else { return };
    for Request { marks, variables, end, answer } in inbox {
        let run = AssertUnwindSafe(|| render(&program, &marks, variables, end));
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
    end: Instant,
) -> Result<String, Error> {
    if Instant::now() > end {
        return Err(timed_out());
    }
    let environment = python::environment(marks, end);
    let blocks = Default::default();
    let mut text = String::new();
    let mut output = machinery::make_string_output(&mut text);
    let run =
        machinery::eval(&environment, program, variables, &blocks, &mut output, AutoEscape::None);
    run.map(|_| ()).map_err(|error| failed(&error, Some(marks.as_ref())))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::conversation::Conversation;
    use crate::tokenizer::Tokenizer;
    use testkit::golden::workspace_root;

    fn marks() -> Arc<Marks> {
        let folder = workspace_root().join("golden/tokenizer/model");
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let conversation = Conversation { messages: Vec::new() };
        Arc::new(Marks::new(&tokenizer, &conversation, &HashSet::new()).unwrap())
    }

    /// How a loop of so many rounds ends that may take so long, and is over soon after.
    fn end_of_loop(values: &str, used: &str, n_rounds: usize, time: Duration) -> String {
        let rounds = format!("{{% for i in range({n_rounds}) %}}{{{{ {used} }}}}{{% endfor %}}");
        let source = format!("{values}{rounds}");
        let start = Instant::now();
        let program = compile(&source).unwrap();
        let rendered = super::render(&program, &marks(), Value::UNDEFINED, start + time);
        assert!(start.elapsed() < Duration::from_secs(10), "{used}: {:?}", start.elapsed());
        rendered.map(|text| text.len()).expect_err(used).to_string()
    }

    #[test]
    fn long_texts_are_paid_for() {
        let texts = "{% set s = 'a' * 20000000 %}{% set t = 'a' * 20000000 %}";
        for used in [
            "''.startswith(s)",
            "''.find(s)",
            "''.strip(s)",
            "''.join(s)",
            "'' | replace(s, '')",
            "'' | trim(s)",
            "{'a': 1, 'b': 2} | attr(s)",
            "[{'a': 1, 'b': 2}] | map(attribute=s, default=1) | list",
            "s is eq(t)",
            "s is sameas t",
            "s is upper",
            "s is startingwith t",
            "'x' is in(s)",
            "s[-1]",
            "s[:1]",
        ] {
            let error = end_of_loop(texts, used, 100, Duration::from_secs(100));
            assert!(error.ends_with("engine ran out of fuel"), "{used}: {error}");
        }
        let used = "([d] * 3000) | map(attribute=s, default=1) | list";
        let values = "{% set s = 'a' * 100000 %}{% set d = {'a': 1, 'b': 2} %}";
        let error = end_of_loop(values, used, 100, Duration::from_secs(100));
        assert!(error.ends_with("engine ran out of fuel"), "{error}");
    }

    #[test]
    fn no_loop_outlasts_its_time() {
        let lists = "{% set s = ['a' * 8000000] %}{% set t = ['a' * 8000000] %}";
        let members = (0..8000).map(|i| format!("'k{i}': 1,")).collect::<String>();
        let namespace = &format!("{{% set ns = namespace({{{members}}}) %}}");
        for (values, used) in [
            (lists, "s == t"),
            (lists, "s is eq t"),
            (lists, "s is in([t])"),
            (lists, "[s].count(t)"),
            (lists, "'x'.startswith([s[0], t[0]])"),
            (lists, "(s + t) | sort | length"),
            (lists, "(s + t) | unique | list | length"),
            (namespace, &format!("{}1", "ns and ".repeat(20))),
        ] {
            let error = end_of_loop(values, used, 3000, Duration::from_millis(300));
            assert!(error.ends_with("rendering takes too long"), "{used}: {error}");
        }
    }

    fn refusal(worker: &Worker) -> String {
        let end = Instant::now() + Duration::from_millis(50);
        worker.render(marks(), Value::UNDEFINED, end).unwrap_err().to_string()
    }

    #[test]
    fn nobody_waits_for_ever() {
        let late =
            super::render(&compile("a").unwrap(), &marks(), Value::UNDEFINED, Instant::now());
        assert!(late.unwrap_err().to_string().ends_with("rendering takes too long"));
        // A thread that hangs takes a conversation and no other.
        let (requests, hanging) = sync_channel(1);
        let start = Instant::now();
        let worker = Worker { requests, reserved: HashSet::new() };
        assert!(refusal(&worker).ends_with("rendering takes too long"));
        assert!(refusal(&worker).ends_with("too many conversations wait"));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        drop(hanging);
        assert!(refusal(&worker).ends_with("its thread has ended"));
    }
}
