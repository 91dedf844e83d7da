import Dispatch
import Foundation
internal import NiwakiNative

/// Calls native code, so that only a ``NiwakiError`` comes out, or a ``RoutingError``.
func native<Result>(_ call: () throws -> Result) throws -> Result {
    do {
        return try call()
    } catch let error as NiwakiError {
        throw error
    } catch let error as RoutingError {
        throw error
    } catch let error as NiwakiNative.NiwakiError {
        throw NiwakiError(error)
    } catch {
        throw NiwakiError.internal(details: "the engine failed in a way it should not; please report it")
    }
}

/// Calls native code that blocks, on a thread that may be blocked: Swift's own threads are few.
func blocking<Result: Sendable>(_ call: @escaping @Sendable () throws -> Result) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
        DispatchQueue.global(qos: .userInitiated).async {
            continuation.resume(with: Swift.Result { try native(call) })
        }
    }
}

/// What a native thread brings forth, item by item.
protocol NativeStream: AnyObject, Sendable {
    associatedtype Item: Sendable

    /// Waits for the next item; `nil` when the stream has ended and nothing is done for it any more.
    func nextItem() throws -> Item?

    /// Stops the work without waiting for its end.
    func cancel()

    /// What is to be said at the end; `nil` after a cancellation.
    func lastItem() -> Item?

    /// The error as the app gets it.
    func error(_ error: any Error) -> any Error
}

extension NativeStream {
    func error(_ error: any Error) -> any Error { error }
}

/// A native object until it is closed, and the streams that draw from it.
final class Handle<Object: Sendable>: Sendable {
    private struct State {
        var object: Object?
        var streams: [ObjectIdentifier: any NativeStream] = [:]
    }

    private let owner: String
    private let state: Locked<State>

    init(_ object: Object, owner: String) {
        self.owner = owner
        state = Locked(State(object: object))
    }

    /// The native object. Who holds it keeps it alive, also when the handle is closed meanwhile.
    func object() throws -> Object {
        guard let object = state.withLock({ $0.object }) else { throw closed }
        return object
    }

    /// Cancels what generates and lets go of the object.
    func close() {
        let ended = state.withLock { state in
            defer { state = State() }
            return state
        }
        ended.streams.values.forEach { $0.cancel() }
    }

    /// Starts a stream that ``close()`` cancels.
    func begin<Stream: NativeStream>(_ start: (Object) throws -> Stream) throws -> Generation<Stream>.Begun {
        let stream = try start(object())
        try state.withLock { state in
            guard state.object != nil else { throw closed }
            state.streams[ObjectIdentifier(stream)] = stream
        }
        return .init(
            stream: stream,
            closedError: { self.state.withLock { $0.object == nil } ? self.closed : nil },
            forget: { self.state.withLock { $0.streams[ObjectIdentifier(stream)] = nil } }
        )
    }

    private var closed: NiwakiError { .closed(details: "\(owner) was closed") }
}

/// A value that one thread at a time uses.
final class Locked<Value>: @unchecked Sendable {
    // Sound, since `value` is touched under the lock only.
    private var value: Value
    private let lock = NSLock()

    init(_ value: Value) {
        self.value = value
    }

    func withLock<Result>(_ use: (inout Value) throws -> Result) rethrows -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try use(&value)
    }
}
