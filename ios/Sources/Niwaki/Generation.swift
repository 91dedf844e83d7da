internal import NiwakiNative

/// What the stream of a generation draws from. Nothing is computed before the first token is asked for, at most one
/// token ahead after that, and nothing any more when the stream has ended, its task was cancelled, or nobody holds it.
final class Generation<Stream: NativeStream>: Sendable {
    /// A stream of the native side, and what its owner has to do with it.
    struct Begun: Sendable {
        let stream: Stream
        /// An error when the owner was closed.
        let closedError: @Sendable () -> NiwakiError?
        /// Takes the stream from the owner's list.
        let forget: @Sendable () -> Void
    }

    // Only the stream holds the generation itself, so that the work is cancelled the moment the stream is gone. Threads
    // that wait for a token may let go of what they hold a little later.
    private let work: Work<Stream>

    private init(_ begin: @escaping @Sendable () throws -> Begun) {
        work = Work(begin)
    }

    deinit {
        work.cancel()
        work.end()
    }

    /// The items of what `begin` starts.
    static func items(_ begin: @escaping @Sendable () throws -> Begun) -> AsyncThrowingStream<Stream.Item, any Error> {
        let generation = Generation(begin)
        return AsyncThrowingStream { try await generation.next() }
    }

    /// The next item; `nil` when there are no more, or when the task was cancelled and the native work has ended.
    private func next() async throws -> Stream.Item? {
        try await withTaskCancellationHandler {
            try await blocking { [work] in try work.next() }
        } onCancel: {
            work.cancel()
        }
    }
}

/// How far a generation has come.
private final class Work<Stream: NativeStream>: Sendable {
    private enum Stage {
        case notBegun(@Sendable () throws -> Generation<Stream>.Begun)
        case going(Generation<Stream>.Begun)
        case over
    }

    private let stage: Locked<Stage>

    init(_ begin: @escaping @Sendable () throws -> Generation<Stream>.Begun) {
        stage = Locked(.notBegun(begin))
    }

    /// Waits for the next item.
    func next() throws -> Stream.Item? {
        do {
            guard let begun = try beginOnce() else { return nil }
            do {
                if let item = try native({ try begun.stream.nextItem() }) { return item }
                end()
                if let error = begun.closedError() { throw error }
                return begun.stream.lastItem()
            } catch {
                throw begun.stream.error(error)
            }
        } catch {
            end()
            throw error
        }
    }

    private func beginOnce() throws -> Generation<Stream>.Begun? {
        try stage.withLock { stage in
            switch stage {
            case .notBegun(let begin):
                let begun = try begin()
                stage = .going(begun)
                return begun
            case .going(let begun):
                return begun
            case .over:
                return nil
            }
        }
    }

    /// Stops the work without waiting for its end.
    func cancel() {
        stage.withLock { stage in
            switch stage {
            case .notBegun: stage = .over
            case .going(let begun): begun.stream.cancel()
            case .over: break
            }
        }
    }

    /// Lets go of it.
    func end() {
        let ended = stage.withLock { stage in
            defer { stage = .over }
            return stage
        }
        if case .going(let begun) = ended { begun.forget() }
    }
}
