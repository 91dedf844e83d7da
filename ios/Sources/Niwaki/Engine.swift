import Foundation
internal import NiwakiNative

/// An opened model.
///
/// ```swift
/// let engine = try await Engine.open(URL(fileURLWithPath: "model.niwaki"))
/// for try await token in engine.generate("Once upon a time") {
///     print(token.text, terminator: "")
/// }
/// ```
///
/// May be used from any task, by several sessions and chats at once. The weights stay mapped until the engine and all of
/// its sessions and chats are closed or gone.
public final class Engine: Sendable {
    /// Name of the model.
    public let name: String

    /// Tokens the context of a session or chat holds.
    public let contextTokens: Int

    /// What the engine with one session takes at its peak.
    public let memoryPlan: MemoryPlan

    /// Whether the model has a chat template, so that ``chat(_:)`` works.
    public let canChat: Bool

    private let handle: Handle<NiwakiNative.Engine>

    private init(_ native: NiwakiNative.Engine) {
        name = native.name()
        contextTokens = Int(clamping: native.contextTokens())
        memoryPlan = MemoryPlan(native.memoryPlan())
        canChat = native.canChat()
        handle = Handle(native, owner: "the engine")
    }

    /// Opens the bundle at `url`. Its weights are mapped, not read, but for once to verify them.
    ///
    /// A document that the user picked may be passed as it is: the right to read it is asked for here.
    ///
    /// - Throws: ``NiwakiError``.
    public static func open(_ url: URL, options: OpenOptions = OpenOptions()) async throws -> Engine {
        try await blocking {
            try withPath(of: url) { try open(.path(path: $0), options) }
        }
    }

    /// Opens a bundle that is a part of an open file: `length` bytes from `offset`, or as many as the bundle has.
    ///
    /// The descriptor stays the caller's, who may close it afterwards.
    ///
    /// - Throws: ``NiwakiError``.
    public static func open(
        fileDescriptor: Int32,
        offset: Int = 0,
        length: Int? = nil,
        options: OpenOptions = OpenOptions()
    ) async throws -> Engine {
        try await blocking {
            try open(descriptor(fileDescriptor, offset, length), options)
        }
    }

    /// States what opening the bundle at `url` would take, without reading its weights.
    ///
    /// - Throws: ``NiwakiError``.
    public static func plan(_ url: URL, options: OpenOptions = OpenOptions()) async throws -> MemoryPlan {
        try await blocking {
            try withPath(of: url) { try plan(.path(path: $0), options) }
        }
    }

    /// States what opening a part of an open file would take, without reading its weights.
    ///
    /// - Throws: ``NiwakiError``.
    public static func plan(
        fileDescriptor: Int32,
        offset: Int = 0,
        length: Int? = nil,
        options: OpenOptions = OpenOptions()
    ) async throws -> MemoryPlan {
        try await blocking {
            try plan(descriptor(fileDescriptor, offset, length), options)
        }
    }

    /// Continues `prompt` in a context of its own.
    ///
    /// Nothing is computed before the stream is read. Cancelling the task that reads it, or leaving its loop, stops the
    /// work.
    ///
    /// - Returns: A stream to read once; it throws ``NiwakiError``.
    public func generate(
        _ prompt: String,
        options: GenerateOptions = GenerateOptions()
    ) -> AsyncThrowingStream<Token, any Error> {
        Generation.items { [handle] in
            let session = Handle(try handle.object().session(), owner: "the session")
            return try session.begin { try $0.generate(text: prompt, options: options.toNative()) }
        }
    }

    /// Begins a session with an empty context.
    ///
    /// - Throws: ``NiwakiError``.
    public func session() async throws -> Session {
        try await blocking { [handle] in Session(try handle.object().session()) }
    }

    /// Begins a conversation, or goes on with `messages` of an earlier one.
    ///
    /// ```swift
    /// let chat = try await engine.chat([.system("Answer in one sentence.")])
    /// for try await token in chat.reply("Why is the sky blue?") {
    ///     print(token.text, terminator: "")
    /// }
    /// ```
    ///
    /// - Throws: ``NiwakiError/noChat(details:)`` when the model has no chat template that works.
    public func chat(_ messages: [Message] = []) async throws -> Chat {
        try await blocking { [handle] in
            let chat = try handle.object().chat()
            if !messages.isEmpty { try chat.setMessages(messages: messages.map { $0.toNative() }) }
            return Chat(chat)
        }
    }

    /// Begins no more sessions and chats; those that are open go on. Letting go of the engine does the same.
    public func close() {
        handle.close()
    }

    /// The native engine, while it is open.
    func native() throws -> NiwakiNative.Engine { try handle.object() }

    private static func open(_ source: BundleSource, _ options: OpenOptions) throws -> Engine {
        Engine(try NiwakiNative.Engine.open(source: source, options: options.toNative()))
    }

    private static func plan(_ source: BundleSource, _ options: OpenOptions) throws -> MemoryPlan {
        MemoryPlan(try NiwakiNative.memoryPlan(source: source, options: options.toNative()))
    }

    private static func descriptor(_ fd: Int32, _ offset: Int, _ length: Int?) throws -> BundleSource {
        .descriptor(
            fd: fd,
            offset: try exact(offset, "offset"),
            length: try length.map { try exact($0, "length") }
        )
    }
}

/// Uses the path of a file that the app may have to ask for.
private func withPath<Result>(of url: URL, _ use: (String) throws -> Result) throws -> Result {
    guard url.isFileURL else {
        let scheme = url.scheme ?? "no scheme"
        throw NiwakiError.invalidArgument(details: "a URL of \(scheme) is no file: download it first")
    }
    #if canImport(Darwin)
        // Documents from other apps. A file that is mapped stays readable without the right.
        let granted = url.startAccessingSecurityScopedResource()
        defer { if granted { url.stopAccessingSecurityScopedResource() } }
    #endif
    return try use(url.path)
}
