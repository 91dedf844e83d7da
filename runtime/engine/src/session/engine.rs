//! Opening a bundle as an engine.

use super::context::Session;
use super::error::SessionError;
use super::isa;
use super::memory_plan::{MemoryPlan, chunk_tokens, memory_plan};
use super::threads::{MAX_THREADS, default_threads};
use super::workspaces::Workspaces;
use crate::kv::KvCache;
use crate::model::{Model, ModelError, Workspace};
use crate::text::{TextError, Tokenizer};
use niwaki_bundle::graph::Graph;
use niwaki_bundle::{
    Bundle, BundleError, ElementKind, GenerationDefaults, Manifest, Verify, WeightTable,
};
use niwaki_kernels::{Isa, Kernels, KvElement, ThreadPool, UnsupportedIsa};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// How to open a bundle.
///
/// ```
/// use niwaki::{KvElement, OpenOptions};
///
/// let options = OpenOptions::default().with_threads(4).with_context_tokens(2048).with_kv(KvElement::I8);
/// assert_eq!(options.memory_limit_bytes, None);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Threads that compute, the calling one included, at most 256; 0 takes the number of fast cores.
    pub threads: usize,
    /// How much of the file is compared with its hashes.
    pub verify: Verify,
    /// Opening fails when the plan's anonymous memory is larger.
    pub memory_limit_bytes: Option<u64>,
    /// Cap on the context; the model's own when absent or larger.
    pub context_tokens: Option<usize>,
    /// How keys and values are kept; when absent f16, or f32 when all weights are f32.
    pub kv: Option<KvElement>,
    /// Instruction set of the kernels; when absent the environment variable `NIWAKI_ISA`, else the best.
    pub isa: Option<Isa>,
}

impl OpenOptions {
    /// Sets [`threads`](Self::threads).
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets [`verify`](Self::verify).
    pub fn with_verify(mut self, verify: Verify) -> Self {
        self.verify = verify;
        self
    }

    /// Sets [`memory_limit_bytes`](Self::memory_limit_bytes).
    pub fn with_memory_limit_bytes(mut self, limit_bytes: impl Into<Option<u64>>) -> Self {
        self.memory_limit_bytes = limit_bytes.into();
        self
    }

    /// Sets [`context_tokens`](Self::context_tokens).
    pub fn with_context_tokens(mut self, context_tokens: impl Into<Option<usize>>) -> Self {
        self.context_tokens = context_tokens.into();
        self
    }

    /// Sets [`kv`](Self::kv).
    pub fn with_kv(mut self, kv: impl Into<Option<KvElement>>) -> Self {
        self.kv = kv.into();
        self
    }

    /// Sets [`isa`](Self::isa).
    pub fn with_isa(mut self, isa: impl Into<Option<Isa>>) -> Self {
        self.isa = isa.into();
        self
    }
}

/// Why a bundle could not be opened as an engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file is not a valid bundle.
    #[error("the bundle cannot be used")]
    Bundle(#[from] BundleError),
    /// Its tokenizer is not valid.
    #[error("the bundle's tokenizer cannot be used")]
    Tokenizer(#[from] TextError),
    /// The plan needs more memory than was allowed.
    #[error(
        "the model needs {:.1} MiB of memory and {:.1} MiB are allowed; a shorter context needs less\n{plan}",
        mib(plan.anonymous_bytes()), mib(*limit_bytes)
    )]
    MemoryLimit {
        /// The limit in bytes.
        limit_bytes: u64,
        /// What is needed.
        plan: Box<MemoryPlan>,
    },
    /// No instruction set of that name.
    #[error("NIWAKI_ISA names the unknown instruction set {name:?}; known are {known}")]
    UnknownIsa {
        /// The name.
        name: String,
        /// The known names.
        known: String,
    },
    /// This CPU lacks the instruction set.
    #[error("this CPU has no {name} instructions; available are {available}")]
    UnavailableIsa {
        /// The name.
        name: &'static str,
        /// What the CPU has.
        available: String,
    },
    /// The kernels refused the instruction set.
    #[error("the kernels cannot run here")]
    Kernels(#[from] UnsupportedIsa),
    /// More threads than are started.
    #[error(
        "{threads} threads are too many: ask for at most {most}, or for none to take the fast cores"
    )]
    TooManyThreads {
        /// What was asked for.
        threads: usize,
        /// Most that can be asked for.
        most: usize,
    },
    /// A context without room for a token.
    #[error("a context of 0 tokens holds nothing; ask for at least 1")]
    NoContext,
    /// The graph could not be planned.
    #[error("the model cannot be planned")]
    Model(#[from] ModelError),
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// An opened model. Cloning shares it; sessions on several threads may use it at once.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    bundle: Arc<Bundle>,
    kernels: Arc<Kernels>,
    model: Model,
    workspaces: Workspaces,
    tokenizer: Option<Tokenizer>,
    plan: MemoryPlan,
    settings: Settings,
    chunk_tokens: usize,
}

/// What the options mean for this bundle.
#[derive(Clone, Copy)]
struct Settings {
    threads: usize,
    context_tokens: usize,
    kv: KvElement,
    isa: Isa,
}

impl Engine {
    /// Opens the bundle at `path`. Weights are mapped, not read, except once to compare hashes.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Engine, OpenError> {
        Self::with_bundle(Bundle::open(path, options.verify)?, options)
    }

    /// Opens a bundle inside another file: `length` bytes from `offset`, or as many as the bundle has.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_file(
        file: &File,
        offset: u64,
        length: Option<u64>,
        options: &OpenOptions,
    ) -> Result<Engine, OpenError> {
        Self::with_bundle(
            Bundle::open_file(file, offset, length, options.verify)?,
            options,
        )
    }

    /// States what [`open`](Self::open) and one session would take, without reading weights or tokenizer.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn plan(path: impl AsRef<Path>, options: &OpenOptions) -> Result<MemoryPlan, OpenError> {
        Self::plan_bundle(Bundle::open(path, Verify::Structure)?, options)
    }

    /// States what [`open_file`](Self::open_file) and one session would take, without reading weights or
    /// tokenizer.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn plan_file(
        file: &File,
        offset: u64,
        length: Option<u64>,
        options: &OpenOptions,
    ) -> Result<MemoryPlan, OpenError> {
        Self::plan_bundle(
            Bundle::open_file(file, offset, length, Verify::Structure)?,
            options,
        )
    }

    fn plan_bundle(bundle: Bundle, options: &OpenOptions) -> Result<MemoryPlan, OpenError> {
        let bundle = Arc::new(bundle);
        let settings = Settings::new(&bundle, options)?;
        let kernels = Arc::new(Kernels::new(settings.isa, Arc::new(ThreadPool::new(1)))?);
        let model = Model::new(&bundle, &kernels)?;
        Ok(memory_plan(
            &bundle,
            &model,
            settings.kv,
            settings.context_tokens,
            settings.threads,
        ))
    }

    fn with_bundle(bundle: Bundle, options: &OpenOptions) -> Result<Engine, OpenError> {
        let bundle = Arc::new(bundle);
        let settings = Settings::new(&bundle, options)?;
        let kernels = Arc::new(Kernels::new(
            settings.isa,
            Arc::new(ThreadPool::new(settings.threads)),
        )?);
        let model = Model::new(&bundle, &kernels)?;
        let plan = memory_plan(
            &bundle,
            &model,
            settings.kv,
            settings.context_tokens,
            settings.threads,
        );
        if let Some(limit_bytes) = options.memory_limit_bytes
            && plan.anonymous_bytes() > limit_bytes
        {
            return Err(OpenError::MemoryLimit {
                limit_bytes,
                plan: Box::new(plan),
            });
        }
        let tokenizer = bundle
            .tokenizer_json()?
            .map(|json| Tokenizer::from_bytes(&json))
            .transpose()?
            .map(|tokenizer| {
                tokenizer.with_first_token(bundle.generation_defaults().first_token())
            });
        log::info!(
            "opened a bundle of {} bytes: {} nodes, {} threads, {} kernels, context {}",
            bundle.header().bundle_bytes,
            bundle.graph().nodes.len(),
            settings.threads,
            settings.isa.name(),
            settings.context_tokens
        );
        let chunk_tokens = chunk_tokens(&model, settings.context_tokens);
        Ok(Engine {
            inner: Arc::new(Inner {
                bundle,
                kernels,
                model,
                workspaces: Workspaces::default(),
                tokenizer,
                plan,
                settings,
                chunk_tokens,
            }),
        })
    }

    /// Begins a session with an empty context.
    ///
    /// # Errors
    /// [`SessionError`] when its state cannot be made.
    pub fn session(&self) -> Result<Session, SessionError> {
        Ok(Session::new(self.clone(), self.empty_cache()?))
    }

    pub(super) fn empty_cache(&self) -> Result<KvCache, SessionError> {
        Ok(KvCache::new(&self.graph().layers, self.inner.settings.kv)?)
    }

    pub(super) fn model(&self) -> &Model {
        &self.inner.model
    }

    pub(super) fn workspaces(&self) -> &Workspaces {
        &self.inner.workspaces
    }

    pub(super) fn with_workspace<R>(
        &self,
        work: impl FnOnce(&Model, &mut Workspace) -> R,
    ) -> Result<R, ModelError> {
        let model = &self.inner.model;
        let work = |workspace: &mut Workspace| work(model, workspace);
        self.inner.workspaces.with(model, work)
    }

    /// Tokens of one run at most.
    pub(super) fn chunk_tokens(&self) -> usize {
        self.inner.chunk_tokens
    }

    /// Whether both are the same, opened once.
    pub(super) fn is(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// What the model is and how it was made.
    pub fn manifest(&self) -> &Manifest {
        self.inner.bundle.manifest()
    }

    /// The lowered graph.
    pub fn graph(&self) -> &Arc<Graph> {
        self.inner.bundle.graph()
    }

    /// Number of token ids that can be given; 0 where the model takes none.
    pub fn token_ids(&self) -> usize {
        self.graph().token_ids().map_or(0, |(_, count)| count)
    }

    /// Where the weights lie and how they are stored.
    pub fn weights(&self) -> &WeightTable {
        self.inner.bundle.weight_table()
    }

    /// The bundle itself.
    pub fn bundle(&self) -> &Bundle {
        &self.inner.bundle
    }

    /// The tokenizer, when the bundle has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.inner.tokenizer.as_ref()
    }

    /// How to generate when the caller does not say.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        self.inner.bundle.generation_defaults()
    }

    /// What this engine with one session takes at its peak.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.inner.plan
    }

    /// Tokens a session's context holds.
    pub fn context_tokens(&self) -> usize {
        self.inner.settings.context_tokens
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.inner.settings.threads
    }

    /// Instruction set of the kernels.
    pub fn isa(&self) -> Isa {
        self.inner.kernels.isa()
    }

    /// How keys and values are kept.
    pub fn kv_element(&self) -> KvElement {
        self.inner.settings.kv
    }
}

impl Settings {
    fn new(bundle: &Bundle, options: &OpenOptions) -> Result<Settings, OpenError> {
        let own = bundle.graph().context_tokens;
        let context_tokens = options.context_tokens.map_or(own, |cap| cap.min(own));
        if context_tokens == 0 {
            return Err(OpenError::NoContext);
        }
        let matrices = &bundle.weight_table().matrices;
        let all_f32 = matrices
            .iter()
            .all(|matrix| matrix.element == ElementKind::F32);
        let kv = options.kv.unwrap_or(if all_f32 {
            KvElement::F32
        } else {
            KvElement::F16
        });
        let threads = match options.threads {
            0 => default_threads(),
            threads if threads > MAX_THREADS => {
                return Err(OpenError::TooManyThreads {
                    threads,
                    most: MAX_THREADS,
                });
            }
            threads => threads,
        };
        Ok(Settings {
            threads,
            context_tokens,
            kv,
            isa: isa::choose(options.isa)?,
        })
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("bundle", &self.inner.bundle)
            .finish_non_exhaustive()
    }
}
