import Dispatch
import Foundation
internal import NiwakiNative

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// An HTTP stack that carries requests to an ``Endpoint``: ``URLSessionTransport``, or the app's own with its trust,
/// metrics and proxies.
///
/// A transport sends a `POST` once, follows no redirect, retries nothing, caches nothing and logs neither headers nor
/// bodies: they hold a key and a user's text. Deadlines, retries, bounds and the reading of the stream are the library's.
public protocol Transport: Sendable {
    /// Connects, sends `request` and returns when the head of the response is there.
    ///
    /// The task is cancelled when nobody wants the response any more, and so is the one that reads its body: both then close
    /// the connection. One that does not return holds nobody up, but keeps a thread.
    ///
    /// - Throws: `URLError`, whose code decides whether the request is sent again; any other error is a failure of the
    ///   transport.
    func send(_ request: TransportRequest) async throws -> TransportResponse
}

/// A `POST`. It is not printed: it holds a key and a user's text.
public struct TransportRequest: Sendable, CustomStringConvertible {
    /// Absolute URL, `https` unless plaintext was allowed.
    public let url: URL

    /// Among them the authorization.
    public let headers: [String: String]

    /// JSON.
    public let body: Data

    /// How long finding the host, connecting and the TLS handshake may take together.
    public let connectTimeout: Duration

    /// How long the response may stay silent. The library's own deadlines come first: it is for stacks that would give up
    /// sooner unless they are told.
    public let readTimeout: Duration

    /// Only where to, and how much.
    public var description: String { "TransportRequest(\(url), \(body.count) bytes)" }
}

/// A response as it begins.
public struct TransportResponse: Sendable {
    /// The status.
    public var status: Int

    /// Those that are needed are `content-type` and `retry-after`, in any case.
    public var headers: [String: String]

    /// What comes, as it comes. It throws what ``Transport/send(_:)`` does.
    public var body: AsyncThrowingStream<Data, any Error>

    /// A response of a status, headers and a body.
    public init(status: Int, headers: [String: String], body: AsyncThrowingStream<Data, any Error>) {
        self.status = status
        self.headers = headers
        self.body = body
    }
}

final class AppTransport: NiwakiNative.Transport {
    private let transport: any Transport

    init(_ transport: any Transport) {
        self.transport = transport
    }

    func exchange(request: NiwakiNative.HttpRequest) throws -> any NiwakiNative.Exchange {
        guard let url = URL(string: request.url) else { throw TransportError.Failed }
        let request = TransportRequest(
            url: url,
            headers: Dictionary(request.headers.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 }),
            body: request.body,
            connectTimeout: Duration(milliseconds: request.connectTimeoutMs),
            readTimeout: Duration(milliseconds: request.readTimeoutMs)
        )
        return AppExchange(transport, request)
    }
}

private final class AppExchange: NiwakiNative.Exchange {
    private let transport: any Transport
    private let request: TransportRequest
    private let waiting = Waiting()
    private let body = Locked<Body?>(nil)

    init(_ transport: any Transport, _ request: TransportRequest) {
        self.transport = transport
        self.request = request
    }

    func send() throws -> NiwakiNative.ResponseHead {
        let response = try carried(timeout: .ConnectTimeout) {
            try waiting.wait { [transport, request] in try await transport.send(request) }
        }
        guard let status = UInt16(exactly: response.status) else { throw TransportError.NotHttp }
        body.withLock { $0 = Body(response.body) }
        return NiwakiNative.ResponseHead(
            status: status,
            headers: response.headers.map { NiwakiNative.HttpHeader(name: $0.key, value: $0.value) }
        )
    }

    func read() throws -> Data? {
        guard let body = body.withLock({ $0 }) else { return nil }
        return try carried(timeout: .Interrupted) {
            try waiting.wait { try await body.next() }
        }
    }

    func cancel() throws {
        waiting.cancel()
        body.withLock { $0 = nil }
    }
}

/// The body of a response, read by one thread.
private final class Body: @unchecked Sendable {
    // Sound: the library reads one piece after the other.
    private var iterator: AsyncThrowingStream<Data, any Error>.Iterator

    init(_ stream: AsyncThrowingStream<Data, any Error>) {
        iterator = stream.makeAsyncIterator()
    }

    func next() async throws -> Data? {
        try await iterator.next()
    }
}

/// A thread of the native side that waits for asynchronous code of the app.
final class Waiting: Sendable {
    private enum State {
        case idle
        case waiting(Task<Void, Never>)
        case cancelled
    }

    private let state = Locked(State.idle)

    /// Runs `work` in a task and blocks until it is done.
    func wait<Result: Sendable>(for work: @escaping @Sendable () async throws -> Result) throws -> Result {
        let result = Locked<Swift.Result<Result, any Error>>(.failure(CancellationError()))
        let done = DispatchSemaphore(value: 0)
        let task = Task {
            do {
                let value = try await work()
                result.withLock { $0 = .success(value) }
            } catch {
                result.withLock { $0 = .failure(error) }
            }
            done.signal()
        }
        state.withLock { state in
            if case .cancelled = state { task.cancel() } else { state = .waiting(task) }
        }
        done.wait()
        return try result.withLock { $0 }.get()
    }

    /// Cancels the task, and all that come after it.
    func cancel() {
        state.withLock { state in
            if case .waiting(let task) = state { task.cancel() }
            state = .cancelled
        }
    }
}

/// Calls an app's transport, so that only a `TransportError` comes out.
private func carried<Result>(timeout: TransportError, _ call: () throws -> Result) throws -> Result {
    do {
        return try call()
    } catch let error as URLError {
        switch error.code {
        case .cannotConnectToHost: throw TransportError.Refused
        case .notConnectedToInternet, .internationalRoamingOff, .callIsActive, .dataNotAllowed:
            throw TransportError.Unreachable
        case .cannotFindHost, .dnsLookupFailed: throw TransportError.Dns
        case .secureConnectionFailed, .serverCertificateHasBadDate, .serverCertificateUntrusted,
            .serverCertificateHasUnknownRoot, .serverCertificateNotYetValid, .clientCertificateRejected,
            .clientCertificateRequired, .appTransportSecurityRequiresSecureConnection:
            throw TransportError.Tls(reason: "URLError \(error.code.rawValue)")
        case .timedOut: throw timeout
        case .networkConnectionLost, .cancelled: throw TransportError.Interrupted
        case .badServerResponse, .cannotParseResponse: throw TransportError.NotHttp
        default: throw TransportError.Failed
        }
    } catch is CancellationError {
        throw TransportError.Interrupted
    } catch {
        throw TransportError.Failed
    }
}
