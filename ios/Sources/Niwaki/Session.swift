internal import NiwakiNative

/// One context of a model: text goes in and is continued. Made by ``Engine/session()``.
///
/// ```swift
/// let session = try await engine.session()
/// for try await token in session.generate("Once upon a time") { show(token.text) }
/// for try await token in session.generate(" The next day") { show(token.text) }
/// ```
public final class Session: Sendable {
    private let handle: Handle<NiwakiNative.Session>

    init(_ native: NiwakiNative.Session) {
        handle = Handle(native, owner: "the session")
    }

    /// Adds `text` to the context and generates what follows.
    ///
    /// Nothing is computed before the stream is read. Cancelling the task that reads it, or leaving its loop, stops the
    /// work.
    ///
    /// One stream of a session is read at a time: another fails with ``NiwakiError/busy``. A stream that is kept in a
    /// variable goes on until it is read to its end, its task is cancelled, or the variable is gone.
    ///
    /// - Returns: A stream to read once; it throws ``NiwakiError``.
    public func generate(
        _ text: String,
        options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<Token, any Error> {
        Generation.items { [handle] in
            try handle.begin { try $0.generate(text: text, options: options.toNative()) }
        }
    }

    /// Tokens in the context.
    ///
    /// - Throws: ``NiwakiError/busy`` while a stream of this session goes on.
    public func usedTokens() async throws -> Int {
        try await blocking { [handle] in Int(clamping: try handle.object().lenTokens()) }
    }

    /// Forgets everything.
    ///
    /// - Throws: ``NiwakiError/busy`` while a stream of this session goes on.
    public func reset() async throws {
        try await blocking { [handle] in try handle.object().reset() }
    }

    /// Frees the context. What is still generating ends within one layer's work, with
    /// ``NiwakiError/closed(details:)``. Letting go of the session and its streams frees it, too.
    public func close() {
        handle.close()
    }
}
