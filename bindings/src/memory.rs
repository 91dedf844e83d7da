//! What a model takes.

/// One line of a memory plan.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MemoryPart {
    /// What it is for.
    pub name: String,
    /// The system may take it back: pages of the file. Otherwise it counts against the app.
    pub file_backed: bool,
    /// Bytes at the peak.
    pub size_bytes: u64,
}

/// What a model takes at its peak.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MemoryPlan {
    /// The parts.
    pub parts: Vec<MemoryPart>,
    /// Bytes of file-backed memory.
    pub file_bytes: u64,
    /// Bytes that count against the app.
    pub anonymous_bytes: u64,
    /// Tokens of context the plan is for.
    pub context_tokens: u64,
}

impl From<&niwaki::MemoryPlan> for MemoryPlan {
    fn from(plan: &niwaki::MemoryPlan) -> Self {
        let parts = plan.parts.iter().map(|part| MemoryPart {
            name: part.name.to_owned(),
            file_backed: part.backing == niwaki::Backing::File,
            size_bytes: part.size_bytes,
        });
        MemoryPlan {
            parts: parts.collect(),
            file_bytes: plan.file_bytes(),
            anonymous_bytes: plan.anonymous_bytes(),
            context_tokens: plan.context_tokens as u64,
        }
    }
}
