internal import NiwakiNative

/// What a model takes at its peak.
public struct MemoryPlan: Sendable, Hashable {
    /// What it is made of.
    public let parts: [MemoryPart]

    /// Pages of the file, which the system may take back.
    public let fileBytes: Int

    /// What counts against the app.
    public let anonymousBytes: Int

    /// Tokens of context that the plan is for.
    public let contextTokens: Int

    init(_ native: NiwakiNative.MemoryPlan) {
        parts = native.parts.map(MemoryPart.init)
        fileBytes = Int(clamping: native.fileBytes)
        anonymousBytes = Int(clamping: native.anonymousBytes)
        contextTokens = Int(clamping: native.contextTokens)
    }
}

/// One line of a ``MemoryPlan``.
public struct MemoryPart: Sendable, Hashable {
    /// What it is for.
    public let name: String

    /// Whether the system may take it back: pages of the file. Otherwise it counts against the app.
    public let isFileBacked: Bool

    /// Bytes at the peak.
    public let sizeBytes: Int

    init(_ native: NiwakiNative.MemoryPart) {
        name = native.name
        isFileBacked = native.fileBacked
        sizeBytes = Int(clamping: native.sizeBytes)
    }
}
