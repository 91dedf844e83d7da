plugins {
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.kotlin.android) apply false
    alias(libs.plugins.kotlin.compose) apply false
}

// The version of the whole project is that of its Cargo workspace.
val cargo: Provider<String> = providers.fileContents(layout.settingsDirectory.file("../Cargo.toml")).asText
val projectVersion: String = Regex("(?m)^version = \"(.+)\"").find(cargo.get())!!.groupValues[1]
allprojects { version = projectVersion }

// `gradle wrapper` writes gradle/wrapper/gradle-wrapper.properties anew, for the Gradle that runs it if nothing is said.
tasks.wrapper {
    gradleVersion = "8.13"
    distributionType = Wrapper.DistributionType.BIN
}
