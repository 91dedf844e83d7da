import Foundation
import Niwaki
import XCTest

final class RouterTests: XCTestCase {
    private let short = [Message.user("Who was the king?")]
    private let long = [Message.user(String(repeating: "Once upon a time there was a king. ", count: 10))]
    private let options = GenerateOptions(maxNewTokens: 6, sampling: .greedy)

    private func policy(_ mode: RoutingMode = .preferLocal) -> RoutingPolicy {
        RoutingPolicy(mode: mode, maxLocalPromptTokens: 40)
    }

    private func endpoint(_ url: String) -> Endpoint {
        Endpoint(url, model: "large", retry: EndpointRetry(maxRetries: 0)) { "sk-test" }
    }

    private func router(_ policy: RoutingPolicy, _ endpoint: Endpoint?) async throws -> Router {
        try await Router(policy, engine: Engine.open(chatModel, options: oneThread), endpoint: endpoint)
    }

    /// The error that the work ends with.
    private func failure(of work: () async throws -> Void, line: UInt = #line) async throws -> RoutingError {
        do {
            try await work()
        } catch let error as RoutingError {
            XCTAssertFalse(error.localizedDescription.isEmpty, line: line)
            return error
        }
        throw NeverCame(what: "line \(line) failed")
    }

    private func endpointError(_ error: RoutingError, line: UInt = #line) throws -> EndpointError {
        guard case .endpoint(let endpoint) = error.cause else { throw error }
        return endpoint
    }

    func testAPromptOverTheLimitGoesToTheEndpointAndOneUnderItStays() async throws {
        let server = try TestServer.good()
        let router = try await router(policy(), endpoint(server.url))
        let stays = try await router.answer(short, options: options).all()
        XCTAssertEqual(stays.first?.decision.answeredBy, .local)
        XCTAssertEqual(stays.last?.decision.reason, .mode)
        XCTAssertEqual(stays.last?.finish?.reason, .maxTokens)
        XCTAssertTrue(stays.dropLast().allSatisfy { $0.finish == nil })
        XCTAssertFalse(stays.map(\.text).joined().isEmpty)
        XCTAssertEqual(server.requests, [])
        XCTAssertNotNil(try router.predictFirstToken(promptTokens: 100))

        let goes = try await router.answer(long, options: options).all()
        XCTAssertEqual(goes.map(\.text).joined(), "from afar")
        let decision = try XCTUnwrap(goes.first).decision
        XCTAssertEqual(decision.answeredBy, .cloud)
        let promptTokens = try XCTUnwrap(decision.promptTokens)
        XCTAssertEqual(decision.reason, .promptOverLimit(promptTokens: promptTokens, maxLocalPromptTokens: 40))
        XCTAssertNotNil(decision.firstText)
        let finish = try XCTUnwrap(goes.last?.finish)
        XCTAssertEqual(finish.reason, .endOfText)
        XCTAssertEqual(finish.cloudReason, "stop")
        XCTAssertEqual([finish.cloudPromptTokens, finish.cloudNewTokens], [5, 2])
        XCTAssertEqual(server.requests.count, 1)
        let request = try XCTUnwrap(server.requests.first)
        XCTAssertTrue(request.contains("there was a king"), request)
        XCTAssertTrue(request.lowercased().contains("authorization: bearer sk-test"), request)
    }

    func testARequestThatMayNotLeaveTheDeviceTouchesNoTransportAndNoKey() async throws {
        let touched = Pieces()
        let transport = FakeTransport { _ in
            touched.append("transport")
            throw URLError(.unknown)
        }
        let endpoint = Endpoint("https://api.example.com", model: "large", transport: transport) {
            touched.append("key")
            return nil
        }
        for mode in RoutingMode.allCases where mode != .cloudOnly {
            let router = try await router(policy(mode), endpoint)
            let answer = try await router.answer(long, options: options, onDeviceOnly: true).all()
            XCTAssertEqual(answer.last?.decision.answeredBy, .local)
            XCTAssertEqual(answer.last?.decision.onDeviceOnly, true)
        }
        let cloudOnly = try await router(policy(.cloudOnly), endpoint)
        let error = try await failure { _ = try await cloudOnly.answer(short, onDeviceOnly: true).all() }
        guard case .notRouted(.onDeviceOnly, _) = error.cause else { throw error }
        XCTAssertNotNil(error.decision)
        XCTAssertNil(error.decision?.answeredBy)
        XCTAssertEqual(touched.all, [])
    }

    func testADeadEndpointIsSaidQuickly() async throws {
        let router = try await router(policy(), endpoint(deadURL()))
        let began = Date()
        let error = try await failure { _ = try await router.answer(long).all() }
        XCTAssertEqual(try endpointError(error).failure, .refused)
        XCTAssertEqual(try endpointError(error).brokeOff, false)
        XCTAssertEqual(error.decision?.tried.map(\.code), ["refused"])
        XCTAssertLessThan(Date().timeIntervalSince(began), 5)
    }

    func testTheDeviceTakesOverFromADeadEndpointAndTheRecordSaysWhy() async throws {
        let router = try await router(policy(.preferCloud), endpoint(deadURL()))
        let decision = try await router.answer(short, options: options).all().first?.decision
        XCTAssertEqual(decision?.answeredBy, .local)
        XCTAssertEqual(decision?.tried.map(\.backend), [.cloud])
        XCTAssertEqual(decision?.tried.map(\.code), ["refused"])
    }

    func testTheEndpointTakesOverFromAModelThatHasNoRoomAndTheRecordSaysWhy() async throws {
        let server = try TestServer.good()
        let router = try await router(policy(), endpoint(server.url))
        let refusing = GenerateOptions(maxNewTokens: 100_000, contextEnd: .refuse)
        let answer = try await router.answer(short, options: refusing).all()
        XCTAssertEqual(answer.map(\.text).joined(), "from afar")
        XCTAssertEqual(answer.first?.decision.tried.map(\.backend), [.local])
        XCTAssertEqual(answer.first?.decision.tried.map(\.code), ["does_not_fit"])
    }

    func testWhatAnEndpointRefusesComesWithWhatAnAppCanActOn() async throws {
        let failures: [Int: EndpointFailure] = [
            302: .redirected, 400: .badRequest, 401: .unauthorized, 404: .notFound, 429: .rateLimited, 500: .server,
        ]
        for (status, failed) in failures {
            let server = try TestServer { connection in
                let body = #"{"error": {"message": "secret words", "code": "some_code"}}"#
                try connection.send(
                    """
                    HTTP/1.1 \(status) As It Is\r
                    Content-Type: application/json\r
                    Content-Length: \(body.utf8.count)\r
                    Retry-After: 7\r
                    Location: https://example.com\r
                    Connection: close\r
                    \r
                    \(body)
                    """
                )
            }
            let router = try await router(policy(.cloudOnly), endpoint(server.url))
            let error = try await failure { _ = try await router.answer(short).all() }
            let endpoint = try endpointError(error)
            XCTAssertEqual(endpoint.failure, failed)
            XCTAssertEqual(endpoint.status, status)
            XCTAssertFalse("\(error)".contains("secret"), "\(error)")
            if status == 429 {
                XCTAssertEqual(endpoint.code, "some_code")
                XCTAssertEqual(endpoint.retryAfter, .seconds(7))
            }
            XCTAssertEqual(server.requests.count, 1)
        }
    }

    func testCancellingATaskClosesTheConnection() async throws {
        let closed = expectation(description: "the connection closed")
        let server = try TestServer { connection in
            do {
                try connection.streamEvents()
                try connection.send(piece("some"))
                while true {
                    try connection.send(": alive\n\n")
                    Thread.sleep(forTimeInterval: 0.02)
                }
            } catch {
                closed.fulfill()
            }
        }
        let router = try await router(policy(.cloudOnly), endpoint(server.url))
        let begun = expectation(description: "a text came")
        let reading = Task {
            for try await _ in router.answer([.user("Who was the king?")]) { begun.fulfill() }
        }
        await fulfillment(of: [begun], timeout: 30)
        reading.cancel()
        try await reading.value
        try await nothingGenerates()
        await fulfillment(of: [closed], timeout: 20)
    }

    func testAnAnswerThatBreaksOffSaysSoWithTheTextItHad() async throws {
        let server = try TestServer { connection in
            try connection.streamEvents()
            try connection.send(piece("half"))
        }
        let router = try await router(policy(.preferCloud), endpoint(server.url))
        var text = ""
        let error = try await failure {
            for try await token in router.answer(short) { text += token.text }
        }
        XCTAssertEqual(text, "half")
        XCTAssertEqual(try endpointError(error).failure, .interrupted)
        XCTAssertEqual(try endpointError(error).brokeOff, true)
        XCTAssertEqual(error.decision?.answeredBy, .cloud)
    }

    func testRoutersThatMakeNoSense() async throws {
        for url in ["api.example.com", "http://api.example.com"] {
            let error = await NiwakiTests.failure { _ = try await Router(endpoint: endpoint(url)) }
            guard case .invalidArgument = error else { return XCTFail("\(String(describing: error))") }
        }
        for wrong in [
            Endpoint("https://api.example.com", model: "m", timeouts: EndpointTimeouts(idle: .seconds(-1))),
            Endpoint("https://api.example.com", model: "m", retry: EndpointRetry(maxRetries: -1)),
        ] {
            let error = await NiwakiTests.failure { _ = try await Router(endpoint: wrong) }
            guard case .invalidArgument = error else { return XCTFail("\(String(describing: error))") }
        }
        let plain = try await openDemo()
        let noChat = await NiwakiTests.failure { _ = try await Router(engine: plain) }
        guard case .noChat = noChat else { return XCTFail("\(String(describing: noChat))") }

        let empty = try await Router()
        let refused = try await failure { _ = try await empty.answer(short).all() }
        guard case .notRouted(.noEndpoint, _) = refused.cause else { throw refused }
        let nonsense = try await failure { _ = try await empty.answer(short, options: options.limited(to: -1)).all() }
        guard case .invalidArgument = nonsense.cause else { throw nonsense }
        empty.close()
        let closed = try await failure { _ = try await empty.answer(short).all() }
        XCTAssertEqual(closed.cause, .closed(details: "the router was closed"))
    }
}
