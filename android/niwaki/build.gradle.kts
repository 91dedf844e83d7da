plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
    `maven-publish`
}

group = "io.niwaki"

// Both scripts need Rust; build-native also an NDK (README.md).
val repository: Directory = layout.settingsDirectory.dir("..")
val generatedKotlin: Provider<Directory> = layout.buildDirectory.dir("generated/uniffi")
val nativeLibraries: Provider<Directory> = layout.buildDirectory.dir("generated/jniLibs")

// Where cargo builds: CARGO_TARGET_DIR, what cargo's configuration says, or target.
val cargoFolder: Provider<String> = providers
    .exec { commandLine(repository.file("bindings/target-folder.sh").asFile) }
    .standardOutput.asText.map { it.trim() }

val generateBindings by tasks.registering(Exec::class) {
    description = "Writes the Kotlin side of the bindings."
    inputs.dir(repository.dir("bindings"))
    outputs.dir(generatedKotlin)
    commandLine(repository.file("android/generate-bindings.sh").asFile, generatedKotlin.get().asFile)
}

val buildNative by tasks.registering(Exec::class) {
    description = "Builds the native library for every ABI."
    inputs.files(
        fileTree(repository) {
            include("Cargo.toml", "Cargo.lock", "bindings/**", "runtime/**")
        },
    )
    outputs.dir(nativeLibraries)
    commandLine(repository.file("android/build-native.sh").asFile, nativeLibraries.get().asFile)
}

android {
    namespace = "io.niwaki"
    compileSdk = 36
    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    sourceSets.named("main") {
        kotlin.srcDir(generatedKotlin)
        jniLibs.srcDir(nativeLibraries)
    }
    publishing {
        singleVariant("release") {
            withSourcesJar()
        }
    }
}

kotlin {
    explicitApi()
    jvmToolchain(17)
}

dependencies {
    api(libs.coroutines.core)
    implementation(libs.jna) { artifact { type = "aar" } }
    testImplementation(libs.jna)
    testImplementation(platform(libs.junit.bom))
    testImplementation(libs.junit.jupiter)
    testRuntimeOnly(libs.junit.launcher)
}

// ../test.sh builds what the tests run with.
tasks.withType<Test>().configureEach {
    useJUnitPlatform()
    systemProperty("jna.library.path", "${cargoFolder.get()}/release")
    systemProperty("niwaki.model", "${cargoFolder.get()}/android/demo.niwaki")
    systemProperty("niwaki.chatModel", "${cargoFolder.get()}/android/chat.niwaki")
}

tasks.named("preBuild") {
    dependsOn(generateBindings, buildNative)
}

publishing {
    publications {
        register<MavenPublication>("release") {
            artifactId = "niwaki-android"
            afterEvaluate { from(components["release"]) }
            pom {
                name = "Niwaki"
                description = "On-device language models: one memory-mapped file, the same text on every device"
                licenses {
                    license { name = "MIT" }
                    license { name = "Apache-2.0" }
                }
            }
        }
    }
}
