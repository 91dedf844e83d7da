import Foundation
import Niwaki
import Observation

#if os(iOS)
    import os
#endif

/// What the screen shows.
@MainActor
@Observable
final class WritingModel {
    private(set) var modelName: String?
    private(set) var memoryPlan: MemoryPlan?
    private(set) var text = ""
    private(set) var problem: String?
    private(set) var isOpening = false
    private(set) var isGenerating = false

    var isBusy: Bool { isOpening || isGenerating }
    var canSend: Bool { engine != nil && !isBusy }

    private var engine: Engine?
    private var chat: Chat?
    private var generation: Task<Void, Never>?

    func open(_ url: URL) async {
        if isBusy { return }
        isOpening = true
        defer { isOpening = false }
        close()
        do {
            memoryPlan = try await Engine.plan(url)
            let opened = try await Engine.open(url, options: OpenOptions(memoryLimitBytes: freeBytes()))
            chat = opened.canChat ? try await opened.chat() : nil
            engine = opened
            modelName = opened.name
        } catch {
            report(error)
        }
    }

    func send(_ prompt: String) {
        guard let engine, !isBusy else { return }
        let options = GenerateOptions(seed: .random(in: 0...UInt64.max))
        let tokens = chat?.reply(prompt, options: options) ?? engine.generate(prompt, options: options)
        text = ""
        problem = nil
        isGenerating = true
        generation = Task {
            defer { isGenerating = false }
            do {
                for try await token in tokens { text += token.text }
            } catch {
                report(error)
            }
        }
    }

    func stop() {
        generation?.cancel()
    }

    /// Waits until nothing is generated any more.
    func finish() async {
        await generation?.value
    }

    func report(_ error: any Error) {
        let suggestion = (error as? any LocalizedError)?.recoverySuggestion
        problem = [error.localizedDescription, suggestion].compactMap { $0 }.joined(separator: "\n")
    }

    private func close() {
        chat?.close()
        engine?.close()
        chat = nil
        engine = nil
        modelName = nil
        memoryPlan = nil
        problem = nil
        text = ""
    }

    /// What the app may still take before the system ends it; `nil` where the system does not say.
    private func freeBytes() -> Int? {
        #if os(iOS)
            // 0 in the simulator, which has no such limit.
            let bytes = os_proc_available_memory()
            return bytes > 0 ? bytes : nil
        #else
            return nil
        #endif
    }
}
