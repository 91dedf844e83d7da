import Niwaki
import SwiftUI
import UniformTypeIdentifiers

struct WritingScreen: View {
    let model: WritingModel

    @State private var prompt = "Once upon a time"
    @State private var isPicking = false

    var body: some View {
        VStack(alignment: .leading, spacing: 12) {
            HStack(spacing: 12) {
                Button("Pick a model") { isPicking = true }
                    .buttonStyle(.borderedProminent)
                    .disabled(model.isBusy)
                if model.isOpening { ProgressView() }
                Text(model.modelName ?? "a .niwaki file")
            }
            if let plan = model.memoryPlan { MemoryTable(plan: plan) }
            if let problem = model.problem { Text(problem).foregroundStyle(.red) }
            ScrollView {
                Text(model.text)
                    .textSelection(.enabled)
                    .frame(maxWidth: .infinity, alignment: .leading)
            }
            HStack(spacing: 12) {
                TextField("Prompt", text: $prompt, axis: .vertical)
                    .textFieldStyle(.roundedBorder)
                if model.isGenerating {
                    Button("Stop") { model.stop() }
                } else {
                    Button("Send") { model.send(prompt) }
                        .disabled(!model.canSend || prompt.isEmpty)
                }
            }
        }
        .padding()
        .fileImporter(isPresented: $isPicking, allowedContentTypes: [.data]) { result in
            switch result {
            case .success(let url): Task { await model.open(url) }
            case .failure(let error): model.report(error)
            }
        }
    }
}

private struct MemoryTable: View {
    let plan: MemoryPlan

    var body: some View {
        Grid(alignment: .leading) {
            ForEach(plan.parts, id: \.name) { part in
                row(part.isFileBacked ? "\(part.name) (file)" : part.name, part.sizeBytes)
            }
            row("counts against the app", plan.anonymousBytes)
        }
        .font(.footnote)
    }

    private func row(_ name: String, _ sizeBytes: Int) -> some View {
        GridRow {
            Text(name)
            Text(Int64(sizeBytes), format: .byteCount(style: .memory))
                .gridColumnAlignment(.trailing)
        }
    }
}

#Preview {
    WritingScreen(model: WritingModel())
}
