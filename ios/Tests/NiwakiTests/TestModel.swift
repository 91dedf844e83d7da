import Foundation
import XCTest

@testable import Niwaki

/// The demo model, built by the niwaki command.
let demoModel = modelURL("NIWAKI_TEST_MODEL")

/// The demo model with a chat template.
let chatModel = modelURL("NIWAKI_TEST_CHAT_MODEL")

private func modelURL(_ variable: String) -> URL {
    guard let path = ProcessInfo.processInfo.environment[variable] else {
        fatalError("\(variable) is not set: run ios/test.sh")
    }
    return URL(fileURLWithPath: path)
}

/// A few threads less to fight over on small machines.
let oneThread = OpenOptions(threads: 1)

let greedy = GenerateOptions(sampling: .greedy)
let endless = GenerateOptions(maxNewTokens: Int(UInt32.max), contextEnd: .forgetOldest)

extension GenerateOptions {
    func limited(to maxNewTokens: Int) -> GenerateOptions {
        var options = self
        options.maxNewTokens = maxNewTokens
        return options
    }
}

func openDemo(_ options: OpenOptions = oneThread) async throws -> Engine {
    try await Engine.open(demoModel, options: options)
}

/// Threads that generate, as the system sees them.
func generatingThreads() -> Int {
    let tasks = "/proc/self/task"
    let threads = (try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []
    return threads.filter { thread in
        (try? String(contentsOfFile: "\(tasks)/\(thread)/comm", encoding: .utf8)) == "niwaki\n"
    }.count
}

struct NeverCame: Error {
    let what: String
}

/// Waits for a condition that is about to hold.
func eventually(_ what: String, _ holds: () -> Bool) async throws {
    for _ in 0..<2000 {
        if holds() { return }
        try await Task.sleep(nanoseconds: 5_000_000)
    }
    throw NeverCame(what: what)
}

/// The work of a stream ends before its loop does; its thread leaves the system's list a moment later.
func nothingGenerates() async throws {
    try await eventually("no thread generates") { generatingThreads() == 0 }
}

/// The error that the work ends with.
func failure(
    of work: () async throws -> Void,
    file: StaticString = #filePath,
    line: UInt = #line
) async -> NiwakiError? {
    do {
        try await work()
        XCTFail("it did not fail", file: file, line: line)
    } catch let error as NiwakiError {
        XCTAssertFalse(error.localizedDescription.isEmpty, file: file, line: line)
        return error
    } catch {
        XCTFail("it failed with \(error)", file: file, line: line)
    }
    return nil
}

extension AsyncSequence {
    func all() async throws -> [Element] {
        var elements: [Element] = []
        for try await element in self { elements.append(element) }
        return elements
    }
}

/// What a task waits at until it is opened.
final class Gate: Sendable {
    private let isOpen = Locked(false)

    func open() {
        isOpen.withLock { $0 = true }
    }

    func wait() async {
        while !isOpen.withLock({ $0 }) { await Task.yield() }
    }
}

/// A folder of a test's own.
func temporaryFolder(_ test: XCTestCase) throws -> URL {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    test.addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
    return folder
}

/// Texts that come in on any thread.
final class Pieces: @unchecked Sendable {
    // Sound, since `pieces` is touched under the lock only.
    private var pieces: [String] = []
    private let lock = NSLock()

    func append(_ piece: String) {
        lock.withLock { pieces.append(piece) }
    }

    var all: [String] { lock.withLock { pieces } }
}
