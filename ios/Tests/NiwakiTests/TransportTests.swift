import Foundation
import Niwaki
import XCTest

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// A transport of a test.
struct FakeTransport: Transport {
    let answer: @Sendable (TransportRequest) async throws -> TransportResponse

    init(_ answer: @escaping @Sendable (TransportRequest) async throws -> TransportResponse) {
        self.answer = answer
    }

    func send(_ request: TransportRequest) async throws -> TransportResponse {
        try await answer(request)
    }
}

/// Transports of an app, good and hostile.
final class TransportTests: XCTestCase {
    private func ask(
        _ transport: FakeTransport,
        idle: Duration = .milliseconds(300),
        apiKey: @escaping @Sendable () async throws -> String? = { nil }
    ) async throws -> String {
        let endpoint = Endpoint(
            "https://api.example.com",
            model: "large",
            transport: transport,
            timeouts: EndpointTimeouts(
                connect: .milliseconds(200), firstByte: .milliseconds(200), idle: idle, total: .seconds(20)),
            retry: EndpointRetry(maxRetries: 0),
            apiKey: apiKey
        )
        let router = try await Router(RoutingPolicy(mode: .cloudOnly), endpoint: endpoint)
        return try await router.answer([.user("secret")]).text()
    }

    private func failure(
        _ transport: FakeTransport,
        idle: Duration = .milliseconds(300),
        apiKey: @escaping @Sendable () async throws -> String? = { nil }
    ) async throws -> EndpointFailure {
        do {
            _ = try await ask(transport, idle: idle, apiKey: apiKey)
        } catch let error as RoutingError {
            if case .endpoint(let endpoint) = error.cause { return endpoint.failure }
            throw error
        }
        throw NeverCame(what: "it failed")
    }

    /// A response of an event stream whose body `next` gives piece by piece.
    private static func response(_ next: @escaping @Sendable (Int) async throws -> Data?) -> TransportResponse {
        let calls = Pieces()
        let body = AsyncThrowingStream<Data, any Error> {
            calls.append("")
            return try await next(calls.all.count)
        }
        return TransportResponse(status: 200, headers: ["Content-Type": "text/event-stream"], body: body)
    }

    private func reading(_ next: @escaping @Sendable (Int) async throws -> Data?) -> FakeTransport {
        FakeTransport { _ in Self.response(next) }
    }

    private static func hang() async -> Never {
        await withUnsafeContinuation { (_: UnsafeContinuation<Never, Never>) in }
    }

    func testAnAnswerComesOverTheAppsOwnStackWhichGetsWhatItNeeds() async throws {
        let seen = Pieces()
        let transport = FakeTransport { request in
            seen.append(request.url.absoluteString)
            seen.append(request.headers.first { $0.key.lowercased() == "authorization" }?.value ?? "none")
            seen.append(String(decoding: request.body, as: UTF8.self))
            seen.append("\(request)")
            return Self.response { call in
                [piece("by the "), piece("app"), ending].indices.contains(call - 1)
                    ? Data([piece("by the "), piece("app"), ending][call - 1].utf8) : nil
            }
        }
        let text = try await ask(transport) { "sk-test" }
        XCTAssertEqual(text, "by the app")
        XCTAssertEqual(seen.all.prefix(2), ["https://api.example.com/v1/chat/completions", "Bearer sk-test"])
        XCTAssertTrue(seen.all[2].contains("secret"))
        XCTAssertFalse(seen.all[3].contains("secret") || seen.all[3].contains("sk-test"), seen.all[3])
    }

    func testWhatItThrowsHasItsFailure() async throws {
        struct Odd: Error {}
        let failures: [(any Error, EndpointFailure)] = [
            (URLError(.cannotConnectToHost), .refused),
            (URLError(.notConnectedToInternet), .unreachable),
            (URLError(.cannotFindHost), .dns),
            (URLError(.serverCertificateUntrusted), .tls),
            (URLError(.timedOut), .connectTimeout),
            (URLError(.networkConnectionLost), .interrupted),
            (URLError(.badServerResponse), .protocol),
            (Odd(), .transport),
        ]
        for (thrown, expected) in failures {
            let failed = try await failure(FakeTransport { _ in throw thrown })
            XCTAssertEqual(failed, expected, "\(thrown)")
        }
        let late = try await failure(reading { _ in throw URLError(.timedOut) })
        XCTAssertEqual(late, .interrupted)
        let locked = try await failure(reading { _ in nil }) { throw Odd() }
        XCTAssertEqual(locked, .keyUnavailable)
    }

    func testOneThatNeverReturnsHoldsNobodyUp() async throws {
        let sending = try await failure(FakeTransport { _ in await Self.hang() })
        XCTAssertEqual(sending, .firstByteTimeout)
        let key = try await failure(reading { _ in nil }) { await Self.hang() }
        XCTAssertEqual(key, .firstByteTimeout)
        let body = try await failure(reading { _ in await Self.hang() })
        XCTAssertEqual(body, .idleTimeout)
    }

    func testNonsenseIsNoAnswer() async throws {
        for status in [-1, 0, 99, 999, 70_000] {
            let failed = try await failure(
                FakeTransport { _ in
                    var response = Self.response { _ in nil }
                    response.status = status
                    return response
                })
            XCTAssertEqual(failed, .protocol, "\(status)")
        }
        let garbage = try await failure(reading { _ in Data("data: \u{0}{]\n\n".utf8) })
        XCTAssertEqual(garbage, .protocol)
        let nothing = try await failure(reading { _ in Data() })
        XCTAssertEqual(nothing, .idleTimeout)
        let endless = Data(repeating: UInt8(ascii: "x"), count: 65536)
        let large = try await failure(reading { _ in endless }, idle: .seconds(15))
        XCTAssertEqual(large, .tooLarge)
    }

    func testItIsLetGoOfWhenNobodyWantsTheRest() async throws {
        /// What a body holds, such as a connection.
        final class Connection: Sendable {
            let closed: XCTestExpectation

            init(_ closed: XCTestExpectation) {
                self.closed = closed
            }

            deinit {
                closed.fulfill()
            }
        }
        let closed = expectation(description: "the connection closed")
        let transport = FakeTransport { _ in
            let connection = Connection(closed)
            return Self.response { call in
                defer { _ = connection }
                if call > 1 { try await Task.sleep(for: .seconds(60)) }
                return Data("data: x\n\n".utf8)
            }
        }
        let failed = try await failure(transport)
        XCTAssertEqual(failed, .protocol)
        await fulfillment(of: [closed], timeout: 20)
    }
}
