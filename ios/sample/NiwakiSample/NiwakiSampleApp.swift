import SwiftUI

@main
struct NiwakiSampleApp: App {
    @State private var model = WritingModel()

    var body: some Scene {
        WindowGroup {
            WritingScreen(model: model)
        }
    }
}
