//! One request on its way.

use crate::backend::{BackendAnswer, Unanswered};
use crate::decision::{BackendId, Decision, Refusal, Tried};
use crate::policy::{Candidate, Situation};
use crate::request::RouteRequest;
use crate::router::{Asked, RouteError, RouteFailure, RoutedAnswer, Router};
use niwaki::{Cancellation, ContextEnd, FinishReason, Token};
use std::mem;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub(crate) struct Run<'a> {
    router: &'a Router,
    request: &'a RouteRequest,
    cancellation: &'a Cancellation,
    on_token: &'a mut dyn FnMut(Token, &Decision) -> ControlFlow<()>,
    start: Instant,
    decision: Decision,
    /// What was said so far, by whoever answers.
    said: String,
    /// Tokens before the first text: another backend may begin anew until then.
    held_back: Vec<Token>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        router: &'a Router,
        request: &'a RouteRequest,
        cancellation: &'a Cancellation,
        on_token: &'a mut dyn FnMut(Token, &Decision) -> ControlFlow<()>,
    ) -> Run<'a> {
        Run {
            router,
            request,
            cancellation,
            on_token,
            start: Instant::now(),
            decision: router.undecided(request),
            said: String::new(),
            held_back: Vec::new(),
        }
    }

    pub(crate) fn answer(mut self) -> Result<RoutedAnswer, RouteError> {
        match self.ask_in_order() {
            Ok(answer) => Ok(RoutedAnswer {
                finish_reason: answer.finish_reason,
                decision: self.decision,
                cloud: answer.cloud,
            }),
            Err(failure) => Err(RouteError {
                failure,
                decision: Box::new(self.decision),
            }),
        }
    }

    fn ask_in_order(&mut self) -> Result<BackendAnswer, RouteFailure> {
        let mut last = None;
        for asked in self.plan()? {
            let began = Instant::now();
            let Unanswered { failure, sent } = match self.ask(asked) {
                Ok(answer) => return Ok(answer),
                Err(unanswered) => unanswered,
            };
            if !self.said.is_empty() {
                return Err(RouteFailure::BrokeOff(failure));
            }
            self.decision.tried.push(Tried {
                backend: asked.id(),
                failure: failure.clone(),
                sent,
                took_ms: millis(began.elapsed()),
            });
            if self.cancellation.is_cancelled() {
                return Ok(BackendAnswer::ended(FinishReason::Cancelled));
            }
            let hopeless = failure.is_of_the_request();
            last = Some(failure);
            if hopeless {
                break;
            }
        }
        Err(match last {
            Some(failure) => RouteFailure::Failed(failure),
            // A plan has somebody in it.
            None => RouteFailure::Refused(Refusal::NoLocalModel),
        })
    }

    /// Who is asked, one after the other.
    fn plan(&mut self) -> Result<Vec<&'a Asked>, RouteFailure> {
        let (mut those, mut candidates) = (Vec::new(), Vec::new());
        for asked in self.router.backends() {
            if let Some(candidate) = self.candidate(asked) {
                those.push(asked);
                candidates.push(candidate);
            }
        }
        let plan = self.router.policy().plan(&Situation {
            on_device_only: self.request.on_device_only,
            prompt: self.request.prompt.kind(),
            may_forget: self.request.options.context_end == ContextEnd::ForgetOldest,
            candidates: &candidates,
        });
        match (plan, self.decision.tried.last()) {
            (Ok(plan), _) => {
                self.decision.reason = Some(plan.reason);
                let asked = plan.order.into_iter();
                Ok(asked
                    .filter_map(|place| those.get(place).copied())
                    .collect())
            }
            // A model is there, but this prompt is nothing it can read: that is why.
            (Err(_), Some(tried)) => Err(RouteFailure::Failed(tried.failure.clone())),
            (Err(refusal), None) => Err(RouteFailure::Refused(refusal)),
        }
    }

    /// What the policy has to know of a backend; `None` when it cannot read this prompt. Nobody counts tokens who takes no
    /// such prompt, or may not answer.
    fn candidate(&mut self, asked: &Asked) -> Option<Candidate> {
        let capabilities = asked.backend.capabilities();
        let mut candidate = Candidate {
            kind: capabilities.kind,
            takes_prompt: capabilities.takes(self.request.prompt.kind()),
            prompt_tokens: None,
            context_tokens: capabilities.context_tokens,
            predicted_first_token_ms: None,
        };
        if !candidate.takes_prompt || !self.may_answer(&candidate) {
            return Some(candidate);
        }
        match asked.backend.measure(&self.request.prompt) {
            Ok(Some(size)) => {
                let computed = size.tokens.saturating_sub(size.computed_tokens);
                candidate.prompt_tokens = Some(size.tokens);
                candidate.predicted_first_token_ms = asked.speed().predict_ms(computed);
            }
            Ok(None) => (),
            Err(failure) => {
                self.decision.tried.push(Tried {
                    backend: asked.id(),
                    failure,
                    sent: 1,
                    took_ms: millis(self.start.elapsed()),
                });
                return None;
            }
        }
        let first_local = self.router.first_local();
        if first_local.is_some_and(|local| std::ptr::eq(local, asked)) {
            self.decision.prompt_tokens = candidate.prompt_tokens;
            self.decision.predicted_first_token_ms = candidate.predicted_first_token_ms;
        }
        Some(candidate)
    }

    fn may_answer(&self, candidate: &Candidate) -> bool {
        let policy = self.router.policy();
        policy.allows(candidate.kind, self.request.on_device_only)
    }

    fn ask(&mut self, asked: &Asked) -> Result<BackendAnswer, Unanswered> {
        let (request, cancellation, id) = (self.request, self.cancellation, asked.id());
        let answered = asked
            .backend
            .answer(request, cancellation, &mut |token| self.give(&id, token));
        let held_back = mem::take(&mut self.held_back);
        let answer = answered?;
        if let Some((tokens, took)) = answer.prefill {
            asked.speed().observe(tokens, took);
        }
        self.decision.answered_by = Some(id);
        for token in held_back {
            // It is the end in any case.
            let _ = (self.on_token)(token, &self.decision);
        }
        Ok(answer)
    }

    fn give(&mut self, by: &BackendId, token: Token) -> ControlFlow<()> {
        if self.said.is_empty() {
            if token.text.is_empty() {
                self.held_back.push(token);
                return ControlFlow::Continue(());
            }
            self.decision.first_text_ms = Some(millis(self.start.elapsed()));
            self.decision.answered_by = Some(by.clone());
            for token in mem::take(&mut self.held_back) {
                (self.on_token)(token, &self.decision)?;
            }
        }
        self.said.push_str(&token.text);
        (self.on_token)(token, &self.decision)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
