import Foundation

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// Carries requests over `URLSession`: the platform's trust store, proxies and App Transport Security.
public final class URLSessionTransport: Transport {
    private let configuration: @Sendable () -> URLSessionConfiguration

    /// A transport with sessions of this configuration; what a transport may not do is turned off in it.
    public init(configuration: @escaping @Sendable () -> URLSessionConfiguration = { .ephemeral }) {
        self.configuration = configuration
    }

    /// Sends `request` on a connection of its own.
    public func send(_ request: TransportRequest) async throws -> TransportResponse {
        let configuration = configuration()
        configuration.urlCache = nil
        configuration.httpCookieStorage = nil
        configuration.requestCachePolicy = .reloadIgnoringLocalCacheData
        var posted = URLRequest(url: request.url)
        posted.httpMethod = "POST"
        posted.httpBody = request.body
        // It is the longest silence, also before the response.
        posted.timeoutInterval = max(request.connectTimeout.timeInterval, request.readTimeout.timeInterval)
        for (name, value) in request.headers { posted.setValue(value, forHTTPHeaderField: name) }
        return try await Download(posted, configuration).response()
    }
}

/// A request under way, and what of its response was not read yet.
private final class Download: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private struct Head {
        let status: Int
        let headers: [String: String]

        init(_ response: HTTPURLResponse) {
            status = response.statusCode
            let headers = response.allHeaderFields.compactMap { name, value in (name as? String).map { ($0, "\(value)") } }
            self.headers = Dictionary(headers, uniquingKeysWith: { $1 })
        }
    }

    private struct State {
        /// Who waits for the head of the response.
        var head: CheckedContinuation<Head, any Error>?
        /// Who waits for more of the body.
        var reader: CheckedContinuation<Data?, any Error>?
        var pieces: [Data] = []
        var bytes = 0
        /// How it ended.
        var end: Result<Void, any Error>?
        var isSuspended = false
    }

    /// Bytes that wait for a slow reader.
    private static let mostBytes = 256 * 1024

    private let state = Locked(State())
    private let task: Locked<URLSessionTask?> = Locked(nil)

    init(_ request: URLRequest, _ configuration: URLSessionConfiguration) {
        super.init()
        let queue = OperationQueue()
        queue.maxConcurrentOperationCount = 1
        let session = URLSession(configuration: configuration, delegate: self, delegateQueue: queue)
        let task = session.dataTask(with: request)
        self.task.withLock { $0 = task }
    }

    func response() async throws -> TransportResponse {
        let head = try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Head, any Error>) in
                state.withLock { state in
                    // It was cancelled already.
                    if case .failure(let error) = state.end { return continuation.resume(throwing: error) }
                    state.head = continuation
                }
                task.withLock { $0?.resume() }
            }
        } onCancel: {
            cancel()
        }
        let reading = Reading(self)
        return TransportResponse(
            status: head.status,
            headers: head.headers,
            body: AsyncThrowingStream { try await reading.next() }
        )
    }

    func next() async throws -> Data? {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                state.withLock { state in
                    if !state.pieces.isEmpty {
                        let piece = state.pieces.removeFirst()
                        state.bytes -= piece.count
                        continuation.resume(returning: piece)
                    } else if let end = state.end {
                        continuation.resume(with: end.map { nil })
                    } else {
                        state.reader = continuation
                    }
                    if state.isSuspended && state.bytes < Self.mostBytes {
                        state.isSuspended = false
                        task.withLock { $0?.resume() }
                    }
                }
            }
        } onCancel: {
            cancel()
        }
    }

    func cancel() {
        task.withLock { $0?.cancel() }
    }

    func urlSession(
        _ session: URLSession,
        task: URLSessionTask,
        willPerformHTTPRedirection response: HTTPURLResponse,
        newRequest request: URLRequest,
        completionHandler: @escaping @Sendable (URLRequest?) -> Void
    ) {
        completionHandler(nil)
    }

    func urlSession(
        _ session: URLSession,
        dataTask: URLSessionDataTask,
        didReceive response: URLResponse,
        completionHandler: @escaping @Sendable (URLSession.ResponseDisposition) -> Void
    ) {
        let head = state.withLock { state in
            defer { state.head = nil }
            return state.head
        }
        if let response = response as? HTTPURLResponse {
            head?.resume(returning: Head(response))
            completionHandler(.allow)
        } else {
            head?.resume(throwing: URLError(.badServerResponse))
            completionHandler(.cancel)
        }
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        state.withLock { state in
            if let reader = state.reader {
                state.reader = nil
                reader.resume(returning: data)
                return
            }
            state.pieces.append(data)
            state.bytes += data.count
            if !state.isSuspended && state.bytes >= Self.mostBytes {
                state.isSuspended = true
                dataTask.suspend()
            }
        }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        let waiting = state.withLock { state in
            state.end = error.map { .failure($0) } ?? .success(())
            defer { (state.head, state.reader) = (nil, nil) }
            return state
        }
        waiting.head?.resume(throwing: error ?? URLError(.badServerResponse))
        if let end = waiting.end { waiting.reader?.resume(with: end.map { nil }) }
        self.task.withLock { $0 = nil }
        // Which lets go of its delegate.
        session.finishTasksAndInvalidate()
    }
}

/// Ends the download when nobody holds it any more. The session holds the download itself.
private final class Reading: Sendable {
    private let download: Download

    init(_ download: Download) {
        self.download = download
    }

    deinit {
        download.cancel()
    }

    func next() async throws -> Data? {
        try await download.next()
    }
}

extension Duration {
    fileprivate var timeInterval: TimeInterval {
        let (seconds, attoseconds) = components
        return Double(seconds) + Double(attoseconds) * 1e-18
    }
}
