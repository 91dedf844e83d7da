//! The search: every step adds a token to all beams of all groups.

use super::hypotheses::{Hypotheses, Hypothesis};
use super::options::BeamOptions;
use crate::cancellation::Cancellation;
use crate::generate::choose::{Sampler, first_not_finite, log_softmax};
use crate::generate::options::{ContextEnd, GenerateOptions};
use crate::generate::outcome::{FinishReason, GenerateError};
use crate::model::Entries;
use crate::session::{BatchStep, Logits, LogitsFor, Session, SessionError};
use niwaki_bundle::graph::Output;
use std::collections::BTreeSet;
use std::time::Instant;

impl Session {
    /// Adds `prompt` to the context and answers the best texts that follow it, best first. The context then holds the
    /// prompt and none of what was found.
    ///
    /// Of `options`, the constraints and penalties of the sampling and the app's own steps work on each beam: on its
    /// log-probabilities, which are not normalized again, as in transformers. Temperature, truncation and the draw have no
    /// say. Fewer texts than asked for, or none, are answered where constraints leave no more. Out of time, what the
    /// beams hold is answered.
    ///
    /// Each step reads the weights once for all beams. Beams share keys and values until they part; pages that they do not
    /// share are not counted in the engine's memory plan.
    ///
    /// ```no_run
    /// use niwaki::{BeamOptions, Engine, GenerateOptions, OpenOptions};
    ///
    /// let engine = Engine::open("model.niwaki", &OpenOptions::default())?;
    /// let tokenizer = engine.tokenizer().ok_or("the bundle has no tokenizer")?;
    /// let prompt = tokenizer.encode("Once upon a time", true)?;
    /// let options = GenerateOptions::default().with_max_new_tokens(40);
    /// let beams = BeamOptions::new(4).with_n_best(2);
    /// for found in engine.session()?.beam_search(&prompt, &beams, &options, None)? {
    ///     println!("{:.3} {}", found.score, found.text);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`GenerateError`], [`SessionError::Cancelled`] in it where `cancellation` was cancelled; the context is then as it
    /// was before.
    pub fn beam_search(
        &mut self,
        prompt: &[u32],
        beams: &BeamOptions,
        options: &GenerateOptions,
        cancellation: Option<&Cancellation>,
    ) -> Result<Vec<Hypothesis>, GenerateError> {
        let before = self.checkpoint();
        let found = Search::new(self, prompt, beams, options, cancellation)
            .and_then(|search| search.run(self, prompt));
        if found.is_err() {
            self.rewind(&before)?;
        }
        found
    }
}

/// One text on its way. Its last token is not in its session yet.
struct Beam {
    session: Session,
    sampler: Sampler,
    tokens: Vec<u32>,
    log_prob: f64,
}

struct Group {
    /// None when it is done.
    beams: Vec<Beam>,
    found: Hypotheses,
}

/// A token that may follow a beam.
struct Continuation {
    beam: usize,
    token: u32,
    log_prob: f64,
}

struct Search<'a> {
    beams: &'a BeamOptions,
    options: &'a GenerateOptions,
    cancellation: Option<&'a Cancellation>,
    begun: Instant,
    /// Beams of a group.
    width: usize,
    /// Tokens of a text at most, and why there are no more.
    max_tokens: usize,
    at_most: FinishReason,
    end_of_text: Vec<u32>,
    /// Kinds of tokens that end a text.
    ends: usize,
    sampler: Sampler,
}

impl<'a> Search<'a> {
    fn new(
        session: &Session,
        prompt: &[u32],
        beams: &'a BeamOptions,
        options: &'a GenerateOptions,
        cancellation: Option<&'a Cancellation>,
    ) -> Result<Search<'a>, GenerateError> {
        beams.check(options)?;
        let engine = session.engine();
        let room_tokens = engine.context_tokens().saturating_sub(session.len());
        // The last token needs no room of its own.
        let most = room_tokens.saturating_sub(prompt.len()).saturating_add(1);
        let fits = options.max_new_tokens <= most;
        if options.context_end == ContextEnd::Refuse && (!fits || prompt.len() > room_tokens) {
            return Err(GenerateError::DoesNotFit {
                prompt_tokens: prompt.len(),
                max_new_tokens: options.max_new_tokens,
                room_tokens,
            });
        }
        let mut sampler = Sampler::new(&options.sampling.clone().with_temperature(0.0))?;
        for step in options.steps.forks() {
            sampler.push(step);
        }
        sampler.read_prompt(session.tokens());
        sampler.read_prompt(prompt);
        let end_of_text = engine.generation_defaults().eos_tokens.clone();
        let ends = end_of_text.iter().chain(&options.stop_tokens);
        Ok(Search {
            beams,
            options,
            cancellation,
            begun: Instant::now(),
            width: beams.width / beams.groups.max(1),
            max_tokens: options.max_new_tokens.min(most),
            at_most: match fits {
                true => FinishReason::MaxTokens,
                false => FinishReason::ContextFull,
            },
            ends: ends.collect::<BTreeSet<_>>().len(),
            end_of_text,
            sampler,
        })
    }

    fn run(self, session: &mut Session, prompt: &[u32]) -> Result<Vec<Hypothesis>, GenerateError> {
        if self.max_tokens == 0 || self.is_out_of_time() {
            return Ok(Vec::new());
        }
        // What a prompt ends inside of a character belongs to the text that follows.
        let mut detokenizer = session
            .engine()
            .tokenizer()
            .map(|t| t.detokenizer(true))
            .transpose()?;
        for token in prompt {
            detokenizer
                .as_mut()
                .map(|detokenizer| detokenizer.push(*token));
        }
        let logits = run_all(&mut [(&mut *session, prompt)], self.cancellation)?;
        let mut rows: Vec<Logits> = logits.into_iter().cycle().take(self.beams.groups).collect();
        let mut groups: Vec<Group> = rows.iter().map(|_| self.group(session)).collect();
        let mut length = 0;
        let reason = loop {
            length += 1;
            let mut rows_left = rows.iter();
            let mut chosen_before = Vec::new();
            for group in &mut groups {
                self.advance(group, &mut rows_left, &mut chosen_before, length)?;
            }
            let done = groups.iter().all(|group| group.beams.is_empty());
            if done || length >= self.max_tokens {
                break self.at_most;
            }
            if self.is_out_of_time() {
                break FinishReason::MaxTime;
            }
            let beams = groups.iter_mut().flat_map(|group| &mut group.beams);
            let mut steps: Vec<(&mut Session, &[u32])> = beams
                .map(|beam| (&mut beam.session, last(&beam.tokens)))
                .collect();
            rows = run_all(&mut steps, self.cancellation)?;
        };
        let mut found = Vec::new();
        for mut group in groups {
            for beam in group.beams {
                group.found.add(beam.tokens, beam.log_prob, length, reason);
            }
            found.append(&mut group.found.into_kept());
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(self.beams.n_best);
        for hypothesis in &mut found {
            let Some(mut detokenizer) = detokenizer.clone() else {
                break;
            };
            let pieces = hypothesis
                .tokens
                .iter()
                .map(|token| detokenizer.push(*token));
            hypothesis.text = pieces.collect();
            hypothesis.text.push_str(&detokenizer.finish());
        }
        Ok(found)
    }

    fn is_out_of_time(&self) -> bool {
        let max_time = self.options.max_time;
        max_time.is_some_and(|max_time| self.begun.elapsed() >= max_time)
    }

    /// A group whose first beam is the prompt; there are no others yet.
    fn group(&self, session: &Session) -> Group {
        Group {
            beams: vec![Beam {
                session: session.fork(),
                sampler: self.sampler.fork(),
                tokens: Vec::new(),
                log_prob: 0.0,
            }],
            found: Hypotheses::new(self.beams, self.width, self.max_tokens),
        }
    }

    /// Takes a row of logits for each beam of the group, and makes the beams of `length` tokens.
    fn advance<'l>(
        &self,
        group: &mut Group,
        rows: &mut impl Iterator<Item = &'l Logits>,
        chosen_before: &mut Vec<u32>,
        length: usize,
    ) -> Result<(), GenerateError> {
        if group.beams.is_empty() {
            return Ok(());
        }
        // Enough that as many as there are beams go on, whatever ends.
        let enough = self
            .width
            .saturating_mul(2.max(self.ends.saturating_add(1)));
        let mut best = Vec::new();
        for ((index, beam), row) in group.beams.iter_mut().enumerate().zip(rows) {
            if let Some(token) = first_not_finite(row.last()) {
                return Err(GenerateError::NotFinite { token });
            }
            let mut log_probs = log_softmax(row.last());
            for token in chosen_before.iter() {
                if let Some(log_prob) = log_probs.get_mut(*token as usize) {
                    *log_prob = (*log_prob - self.beams.diversity_penalty).max(f32::MIN);
                }
            }
            let left = beam.sampler.left_of(&log_probs);
            best.extend(left.best(enough).iter().map(|candidate| Continuation {
                beam: index,
                token: candidate.token,
                log_prob: beam.log_prob + f64::from(candidate.logit),
            }));
        }
        best.sort_by(|a, b| {
            let higher = b.log_prob.total_cmp(&a.log_prob);
            higher.then(a.beam.cmp(&b.beam)).then(a.token.cmp(&b.token))
        });
        best.truncate(enough);
        let mut next = Vec::new();
        for (rank, continuation) in best.iter().enumerate() {
            if next.len() == self.width {
                break;
            }
            let Some(beam) = group.beams.get(continuation.beam) else {
                continue;
            };
            match self.end(continuation.token) {
                None => next.push(beam.followed_by(continuation)),
                Some(reason) if rank < self.width => {
                    let tokens = beam.tokens.clone();
                    group
                        .found
                        .add(tokens, continuation.log_prob, length, reason);
                }
                Some(_) => {}
            }
        }
        chosen_before.extend(next.iter().flat_map(|beam| last(&beam.tokens)));
        let goes_on = best
            .first()
            .is_some_and(|best| !group.found.is_done(best.log_prob, length));
        group.beams = if goes_on { next } else { Vec::new() };
        Ok(())
    }

    /// Why a text ends at this token, if it does.
    fn end(&self, token: u32) -> Option<FinishReason> {
        if self.end_of_text.contains(&token) {
            return Some(FinishReason::EndOfText);
        }
        let stops = self.options.stop_tokens.contains(&token);
        stops.then_some(FinishReason::StopToken)
    }
}

impl Beam {
    fn followed_by(&self, continuation: &Continuation) -> Beam {
        let mut sampler = self.sampler.fork();
        sampler.accept(continuation.token);
        let mut tokens = self.tokens.clone();
        tokens.push(continuation.token);
        Beam {
            session: self.session.fork(),
            sampler,
            tokens,
            log_prob: continuation.log_prob,
        }
    }
}

/// The last token, or nothing.
fn last(tokens: &[u32]) -> &[u32] {
    tokens
        .get(tokens.len().saturating_sub(1)..)
        .unwrap_or_default()
}

/// Adds tokens to each session in one run, and answers the logits of the last ones.
fn run_all(
    sessions: &mut [(&mut Session, &[u32])],
    cancellation: Option<&Cancellation>,
) -> Result<Vec<Logits>, SessionError> {
    let Some((first, _)) = sessions.first() else {
        return Ok(Vec::new());
    };
    let engine = first.engine().clone();
    let inputs: Vec<[Entries<'_>; 1]> = sessions
        .iter()
        .map(|(_, tokens)| [Entries::Ids(tokens)])
        .collect();
    let mut steps: Vec<BatchStep<'_>> = sessions
        .iter_mut()
        .zip(&inputs)
        .map(|((session, _), inputs)| BatchStep {
            session,
            inputs,
            logits_for: LogitsFor::LastToken,
        })
        .collect();
    let outputs = engine
        .run(&mut steps, cancellation)
        .map_err(|error| error.source)?;
    let logits = outputs
        .into_iter()
        .map(|outputs| outputs.take(Output::LOGITS));
    logits
        .map(|logits| logits.ok_or(SessionError::NoLogits))
        .collect()
}
